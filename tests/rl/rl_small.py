"""What the tests of `llmrec.rl` compare with: plain calls of a small model, a row for every completion."""

import numpy as np
import torch
from decoding.reference_search import EOS, next_tokens, prompts
from torch.nn.utils.rnn import pad_sequence

from llmrec.rl import Groups

LENGTHS = [7, 3, 12]


def written(semid: tuple, semids: list[tuple]) -> list[int]:
    """A Semantic ID as a completion: an end that is a choice, because others go on, is the EOS token."""
    return [*semid, EOS] if len(next_tokens(semid, set(semids))) > 1 else list(semid)


def allowed_after(prefix: list[int], semids: list[tuple]) -> list[int]:
    return [EOS if token == -1 else token for token in next_tokens(tuple(prefix), set(semids))]


@torch.no_grad()
def plain(model, prompt: list[int], completion: list[int], allowed: list, temperature: float = 1.0) -> np.ndarray:
    """float64 [tokens, 2]: log-probability and entropy of each token among `allowed[place]` (`None`: all)."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double() / temperature
    found = []
    for token, row, ids in zip(completion, logits, allowed, strict=True):
        steps = (row if ids is None else row[ids]).log_softmax(0)
        chosen = steps[token if ids is None else ids.index(token)]
        found.append((float(chosen), float(-(steps.exp() * steps).sum())))
    return np.array(found)


def over_catalogue(model, prompt, semid: tuple, semids: list[tuple], temperature: float = 1.0) -> np.ndarray:
    """`plain` of a Semantic ID among the tokens that continue some Semantic ID."""
    tokens = written(semid, semids)
    allowed = [allowed_after(tokens[:place], semids) for place in range(len(tokens))]
    return plain(model, prompt, tokens, allowed, temperature)


def distribution(model, prompt, semids: list[tuple], temperature: float = 1.0) -> np.ndarray:
    """float64 [len(semids)]: the probability of each."""
    return np.exp([over_catalogue(model, prompt, semid, semids, temperature)[:, 0].sum() for semid in semids])


def grouped(completions: list[list[list[int]]], lengths: list[int] = LENGTHS) -> Groups:
    """Groups of completions after random prompts of these lengths, padded on the left."""
    ids, mask = prompts(lengths)
    flat = [torch.tensor(tokens) for group in completions for tokens in group]
    padded = pad_sequence(flat, batch_first=True, padding_value=0).unflatten(0, (len(completions), -1))
    held = pad_sequence([torch.ones_like(tokens) for tokens in flat], batch_first=True).unflatten(0, padded.shape[:2])
    return Groups(ids, mask.bool(), padded, held.bool())


def rows_of(groups: Groups) -> tuple[torch.Tensor, torch.Tensor]:
    """The same completions as TRL holds them: int64 [N x G, P + C] ids and mask."""
    size = groups.completions.shape[1]
    ids = torch.cat([groups.prompts.repeat_interleave(size, 0), groups.completions.flatten(0, 1)], 1)
    mask = torch.cat([groups.prompt_mask.repeat_interleave(size, 0), groups.completion_mask.flatten(0, 1)], 1)
    return ids, mask.long()


def prompt_tokens(groups: Groups, row: int) -> list[int]:
    return groups.prompts[row][groups.prompt_mask[row]].tolist()
