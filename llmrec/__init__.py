"""llmrec turns a catalogue and an interaction log into one model folder that recommends.

The names below are imported on first use, so `import llmrec` is instant.
"""

import importlib
import warnings

from llmrec import moved as moved  # old names of modules

# Of a vLLM that TRL would generate with, which it never does here (`llmrec.rl.policy`), whatever version serves.
warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)

__version__ = "0.3.0"

_EXPORTS = {
    "PreparedData": "llmrec.data",
    "SemIDIndex": "llmrec.catalogue",
    "SemIDTrie": "llmrec.decoding",
    "Filter": "llmrec.catalogue",
    "Recommendation": "llmrec.recommenders",
    "Recommender": "llmrec.recommenders",
    "LLMRecommender": "llmrec.recommenders",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'llmrec' has no attribute {name!r}")
