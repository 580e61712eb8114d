"""Does a search give the scores of the model itself? Asked once, with four short Semantic IDs after two short prompts.

What a model keeps of its prompt (keys of every head, a latent, a recurrent state, two attentions a layer), what it
does to its logits and whether its state follows beams cannot be told from a config. So the scores that a search finds
are held against one plain forward pass before the search is believed.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import transformers

from llmrec.decoding.beam_search import Search, check_scores
from llmrec.decoding.encoder_decoder import start_token
from llmrec.decoding.head import unwrap
from llmrec.decoding.trie import SemIDTrie
from llmrec.files import fingerprint, read_json, write_json

logger = logging.getLogger(__name__)
FILE = ".self_check.json"  # hidden, for it is no part of what a stage wrote
REVISION = 2  # of the searches and of this check: what was kept of another is asked again
LENGTHS = (6, 4)  # of the prompts
SEMIDS = torch.tensor([[0, 2, 4], [0, 3, 5], [1, 2, 5], [1, 3, 4]])


class Choice(NamedTuple):
    """The first way that is exact, `""` if none is, and what is wrong with those before it."""

    way: str
    why: str


_of_models: WeakKeyDictionary[torch.nn.Module, tuple[tuple, Choice]] = WeakKeyDictionary()
_of_keys: dict[str, Choice] = {}


def first_exact(
    model: torch.nn.Module, ways: Mapping[str, Callable[..., Search]], device: torch.device, folder: Path | None = None
) -> Choice:
    """The first of some ways to search whose scores are those of a plain forward pass.

    A way is a function `(model, input_ids, attention_mask, trie, normalize)` → `Search`.

    It costs a few short forward passes when a model, or its dtype, attention or wrapper, is new; what is found is
    remembered, and kept in `folder`'s .self_check.json if that can be written.

    Raises:
        ValueError: the model's logits are not numbers.
    """
    inner = unwrap(model)
    head = type(inner.get_output_embeddings()).__name__
    parts = (*ways, str(inner.dtype), inner.config._attn_implementation, device.type, type(model).__name__, head)
    before, choice = _of_models.get(inner, (None, None))
    if before == parts:
        return choice
    versions = REVISION, torch.__version__, transformers.__version__
    key = fingerprint(json.dumps([*parts, *versions, type(inner).__qualname__, inner.config.to_json_string()]))
    kept = _read(folder)
    if key in kept and kept[key].way not in ways:
        del kept[key]
    choice = _of_keys[key] = _of_keys.get(key) or kept.get(key) or _judge(model, ways, device)
    if folder is not None and choice.way and key not in kept:  # what failed may do better another time
        _keep(folder, {**kept, key: choice})
    _of_models[inner] = parts, choice
    return choice


def _read(folder: Path | None) -> dict[str, Choice]:
    try:
        kept = {} if folder is None else {key: Choice(**value) for key, value in read_json(folder / FILE).items()}
        return {key: choice for key, choice in kept.items() if all(isinstance(part, str) for part in choice)}
    except (ValueError, TypeError, AttributeError, OSError):  # not there, or not ours: it is made again
        return {}


def _keep(folder: Path, choices: dict[str, Choice]) -> None:
    try:
        write_json(folder / FILE, {key: choice._asdict() for key, choice in choices.items()})
    except OSError as error:
        logger.debug("%s is not kept: %s", folder / FILE, error)


@torch.no_grad()
def _judge(model: torch.nn.Module, ways: Mapping[str, Callable[..., Search]], device: torch.device) -> Choice:
    inner = unwrap(model)
    # Spread over the vocabulary, so that few are special tokens; all differ where there are 18 tokens.
    tokens = torch.linspace(3, inner.config.get_text_config().vocab_size - 1, 18).long().to(device)
    semids, (prompt, eos) = tokens[SEMIDS.to(device)], (tokens[6:12], tokens[12])
    trie = SemIDTrie(semids.cpu().numpy(), int(eos)).to(device)
    ids = torch.stack([prompt.roll(number) for number in range(len(LENGTHS))])
    mask = torch.arange(ids.shape[1], device=device) < torch.tensor(LENGTHS, device=device)[:, None]
    faults = []
    with evaluating(model):
        if start_token(model) is None:
            own = _plain_scores(model, ids, semids)
        else:
            own = _decoder_scores(model, ids, mask.long(), semids)
        check_scores(own)
        for name, open_search in ways.items():
            opened = partial(open_search, model, ids, mask.long(), trie, "vocabulary")
            fault = _fault(opened, own, semids, inner.dtype)
            if fault is None:
                return Choice(name, "; ".join(faults))
            faults.append(f"{name} {fault}")
    return Choice("", "; ".join(faults))


def _plain_scores(model: torch.nn.Module, ids: torch.Tensor, semids: torch.Tensor) -> torch.Tensor:
    """float32 [N, 4]: the score of every SemID after every prompt, by one forward pass over all of them.

    Rows are filled up to one length on the right, where a causal model does not look.
    """
    rows = torch.stack(
        [torch.cat([ids[n, :length], semid, ids[n, length:]]) for n, length in enumerate(LENGTHS) for semid in semids]
    )
    logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits
    places = torch.tensor(LENGTHS, device=ids.device).repeat_interleave(len(semids))[:, None] - 1
    places = places + torch.arange(semids.shape[1], device=ids.device)
    steps = logits[torch.arange(len(rows), device=ids.device)[:, None], places].float().log_softmax(-1)
    return steps.gather(-1, semids.repeat(len(LENGTHS), 1)[..., None])[..., 0].sum(-1).view(len(LENGTHS), -1)


def _decoder_scores(model, ids: torch.Tensor, mask: torch.Tensor, semids: torch.Tensor) -> torch.Tensor:
    """The same of a model with an encoder."""
    ids, mask = (part.repeat_interleave(len(semids), 0) for part in (ids, mask))
    answers = semids.repeat(len(LENGTHS), 1)
    read = torch.cat([torch.full_like(answers[:, :1], start_token(model)), answers[:, :-1]], 1)
    steps = model(input_ids=ids, attention_mask=mask, decoder_input_ids=read).logits.float().log_softmax(-1)
    return steps.gather(-1, answers[..., None])[..., 0].sum(-1).view(len(LENGTHS), -1)


def _fault(
    open_search: Callable[[], Search], own: torch.Tensor, semids: torch.Tensor, dtype: torch.dtype
) -> str | None:
    """What is wrong with the scores of a search, if anything is."""
    try:
        found = open_search()(None, len(semids), None)
        check_scores(found.scores)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model that was not made for this may raise
        return f"fails ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    same = (found.tokens[:, :, None] == semids).all(-1)  # [N, found, SemIDs]
    if not bool(same.any(1).all()):
        return "does not find every Semantic ID"
    scores = found.scores.gather(1, same.int().argmax(1))
    off = float((scores - own).abs().nan_to_num().mean())
    # The mean, for one expert of a mixture may be another for reasons of rounding.
    return None if off <= _tolerance(dtype, own.device) else f"is off by {off:.2g} nats"


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Nats per SemID: .003 in float32 on a CPU, .25 in float16 (and float32 on a GPU, which may compute with its
    mantissa, and whole numbers), .7 in bfloat16."""
    if not dtype.is_floating_point or (device.type != "cpu" and dtype.itemsize > 2):
        dtype = torch.float16
    return 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** 0.5


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """While open, no module of `model` trains; after it those train that did."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
