"""A GGUF file, llama.cpp's format of weights in blocks of few bits, as an ordinary model of transformers.

transformers reads such files, but can neither train nor save what it makes of them. Here the dequantised weights move
into the plain model of the same config. GGUF keeps settings in float32: 1e-5 is read as 9.999999747378752e-06 and
becomes 1e-5 again.
"""

import logging
import struct
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
# What transformers and gguf raise on files that are cut short, of another format or of an unknown architecture.
_UNREADABLE = (ImportError, ValueError, TypeError, LookupError, RuntimeError, OSError, struct.error)


def load_gguf(
    file: str | Path, dtype: torch.dtype = torch.bfloat16
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model of a GGUF file, dequantised to `dtype`, and its tokenizer.

    In float32 its logits are those of the object that transformers reads, to the bit; in another `dtype` those of that
    object read in the same one.

    Raises:
        ValueError: naming the file: there is none, it is no whole GGUF, transformers cannot dequantise its
            architecture, or weights of the model are missing in it; or the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError("reading GGUF files needs the package gguf: pip install 'llmrec[gguf]'") from error
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} is not there, or is no file: name the .gguf file itself")
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    rest = {"dtype": dtype, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # since 5.19, which may leave the weights packed on a GPU
        rest["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        stored = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
        tokenizer = AutoTokenizer.from_pretrained(**place)
        read, report = AutoModelForCausalLM.from_pretrained(**place, **rest)
        config = {name: _shortest(value) for name, value in read.config.to_dict().items()}
        config.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(type(read.config).from_dict(config), dtype=dtype)
        model.load_state_dict(read.state_dict())
    except _UNREADABLE as error:
        version, why = transformers.__version__, " ".join(str(error).split())[:300]
        raise ValueError(f"{file} is no GGUF that transformers {version} can read: {why}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{file} lacks {len(missing)} weights of a {model.config.model_type}, such as {missing[0]}")
    if (kept := model.num_parameters()) != stored:
        logger.warning("%s holds %s numbers, %s of them for this model: the rest is lost", file, stored, kept)
    if tokenizer.chat_template is None:
        logger.warning("%s has no chat template: prompts will be plain text", file)
    return model.eval(), tokenizer


def _shortest(value):
    """`value`, in which every number that is a float32 is the shortest one of the same float32."""
    if isinstance(value, dict):
        return {name: _shortest(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortest(each) for each in value]
    if isinstance(value, float) and value == (rounded := np.float32(value)):
        return float(str(rounded))
    return value
