"""Old names of modules and functions, which keep working for one version with a warning that says the new one."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

_MOVED = {
    "llmrec.baselines": "llmrec.recommenders",
    "llmrec.filters": "llmrec.catalogue.filters",
    "llmrec.item_tokenizers.feature_parts": "llmrec.features.parts",
    "llmrec.model_folder": "llmrec.models.folder",
    "llmrec.model_update": "llmrec.models.update",
    "llmrec.recommender": "llmrec.recommenders",
    "llmrec.scratch": "llmrec.models.from_scratch",
    "llmrec.semids": "llmrec.catalogue.semids",
    "llmrec.serving.plugin": "llmrec.serving.vllm.plugin",  # in the metadata of older installations
    "llmrec.serving.recommend_file": "llmrec.serving.batch.recommend_file",
    "llmrec.serving.recommender": "llmrec.serving.vllm.recommender",
    "llmrec.serving.vllm.semid_states": "llmrec.decoding.semid_states",
    "llmrec.serving.vllm_routes": "llmrec.serving.vllm.routes",
    "llmrec.text_generation": "llmrec.decoding.free_text",
    "llmrec.vocabulary": "llmrec.models.vocabulary",
}


class _Moved(MetaPathFinder, Loader):
    """Finds an old name, and makes it another name of the module that is now elsewhere."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if not (new := _new_name(name)):
            return None
        there = importlib.util.find_spec(new)
        return there and ModuleSpec(name, self, origin=there.origin)

    def create_module(self, spec: ModuleSpec):
        return None

    def exec_module(self, module) -> None:
        sys.modules[module.__name__] = importlib.import_module(_warned(module.__name__))

    def get_code(self, name: str):
        """What `python -m` runs."""
        new = _warned(name)
        return importlib.util.find_spec(new).loader.get_code(new)


def _new_name(name: str) -> str:
    """`""` for a name that has not moved; what stood in a room that moved is found in the new one."""
    room, _, last = name.rpartition(".")
    return _MOVED.get(name) or (f"{_MOVED[room]}.{last}" if room in _MOVED else "")


def _warned(old: str) -> str:
    new = _new_name(old)
    warnings.warn(f"{old} is now {new}; the old name goes with the next version", FutureWarning, stacklevel=3)
    return new


def names_moved(module: str, **homes: str) -> Callable[[str], object]:
    """The `__getattr__` of a module whose functions stand in other modules now, by name."""

    def find(name: str):
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {homes[name]}.{name}", FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(homes[name]), name)

    return find


sys.meta_path.insert(0, _Moved())
