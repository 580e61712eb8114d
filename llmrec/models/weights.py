"""The weights and the tokenizer of a model, whoever made it: no code and no pickle is read, and what does not fit is
refused before memory is taken for it. Whoever trains a model, distils from it or serves it reads it here."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.files import read_json
from llmrec.models.folder import CONFIG

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_SAFE = {"trust_remote_code": False}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx")


def downloaded(name: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a model on the Hub, without what is no data; `ValueError` where it cannot be had."""
    try:
        return Path(snapshot_download(name, revision=revision, token=token, ignore_patterns=_PICKLES))
    except Exception as error:
        raise ValueError(f"{name} is neither a folder nor a reachable Hub model with {CONFIG}") from error


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of the Hub; raises `ValueError` where it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(source, **_SAFE)
    except Exception as error:  # that is what tokenizers raises
        if not Path(source).is_dir():
            raise ValueError(_unreachable(source, error)) from error
        raise ValueError(f"{source}: its tokenizer cannot be read ({_said(error)}): restore tokenizer.json") from error


def load_model(source: str | Path, **model_kwargs) -> PreTrainedModel:
    """The causal language model of a folder or of the Hub, for evaluation; all its weights come from safetensors.

    Args:
        model_kwargs: of transformers' `from_pretrained`.

    Raises:
        ValueError: config.json describes more weights than there are, or other ones; a file that cannot be read.
    """
    folder = Path(source)
    ours = (folder / CONFIG).exists()
    if (folder / "config.json").exists():  # an adapter's folder has none
        _check_size(folder)
    more = {**_SAFE, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(source, **(more | model_kwargs))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind, where a file holds something else than its reader expects
        if not folder.is_dir():
            raise ValueError(_unreachable(source, error)) from error
        raise ValueError(f"{source}: config.json and the weights do not make a model ({_said(error)})") from error
    whole = ours and (folder / "config.json").exists()  # a base may hold heads that no causal model has
    for what in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if whole else ())):
        if names := sorted(map(str, found[what])):  # those that do not match with both shapes
            raise ValueError(
                f"{source}: weights and config.json do not fit, {len(names)} {what.replace('_', ' ')} such as "
                f"{names[0]}: restore model.safetensors and config.json"
            )
    return model.eval()


def _check_size(folder: Path) -> None:
    """Refuses a config.json that describes a model of more weights than lie in the folder."""
    there = tensors = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                sizes = [torch.Size(opened.get_slice(name).get_shape()).numel() for name in opened.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        there, tensors = there + sum(sizes), tensors + len(sizes)
    path = folder / "config.json"
    layers = [value for name, value in read_json(path).items() if name in _LAYERS and isinstance(value, int)]
    if max(layers, default=0) > tensors:  # before anything is made for each of them
        raise ValueError(f"{path} describes a model of {max(layers)} layers, there are {tensors} weights")
    try:
        config = AutoConfig.from_pretrained(folder, **_SAFE)
        if getattr(config, "quantization_config", None) is not None:
            return  # packed weights
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **_SAFE)
    except Exception as error:
        raise ValueError(f"{path} describes no model that fits: {_said(error)}") from error
    wanted = sum(weight.numel() for weight in {id(one): one for one in model.parameters()}.values())
    if wanted > there:
        raise ValueError(f"{path} describes a model of {wanted:,} parameters, its weights hold {there:,}")


def _unreachable(source: str | Path, error: Exception) -> str:
    return f"{source} is neither a folder with a model nor one of the Hub that can be reached: {str(error)[:300]}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"
