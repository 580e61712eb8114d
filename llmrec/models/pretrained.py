"""A pretrained language model, of the Hub or a folder: weights, tokenizer, and what its card says of it."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.catalogue.semids import SemIDIndex
from llmrec.hub import is_hub_name, repository, without_revision
from llmrec.models.provenance import Provenance
from llmrec.models.vocabulary import check_plain


def load_pretrained(
    name: str, index: SemIDIndex, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, which these Semantic IDs are new to; `name` is a folder or of the Hub
    (`llmrec.hub`). Raises `ValueError` that begins with `model_name_or_path` where there is none."""
    called, revision = repository(name, revision)
    where = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(called, **where)
        check_plain(tokenizer, index)
        return AutoModelForCausalLM.from_pretrained(called, **where), tokenizer
    except OSError as error:
        where = "neither a folder with a model nor one of the Hub that can be reached"
        raise ValueError(f"model_name_or_path: {name} is {where}: {error}") from error


def provenance_of(name: str | None, base_model: str | None = None, license: str | None = None) -> Provenance:
    """Of a pretrained model, before any stage of ours; of one from scratch without a `name`.

    Args:
        base_model: what it is called on the Hub, where `name` is a folder and does not say it.
        license: where neither the folder's card nor that on the Hub says it, or can be reached.
    """
    known = Provenance.load(name) if name else Provenance()
    called = base_model or known.base_model
    found = {"license": license} if license else known.license or _license(name or "") or _license(called)
    return replace(known, base_model=called, license=found)


def _license(name: str) -> dict:
    """What a model's card says of its license: of a folder, or of a name on the Hub; nothing where it says nothing."""
    card = Path(name) / "README.md"
    if not card.is_file() and not is_hub_name(name):
        return {}
    try:
        data = ModelCard.load(card if card.is_file() else without_revision(name), ignore_metadata_errors=True).data
    except (OSError, ValueError, HfHubHTTPError):
        return {}
    found = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in found.items() if isinstance(value, str)}
