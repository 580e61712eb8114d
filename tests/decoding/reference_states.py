"""What the tests of the logits processor compare with: SemIDs in texts, read and scored in plain Python."""

import math
from typing import NamedTuple

import torch

from llmrec.decoding.semid_states import CatalogueTokens, SemIDRequest

EOS = 1


class Case(NamedTuple):
    """A catalogue: its SemIDs as tuples of tokens, those of removed items, and all SemID tokens there are."""

    semids: set
    removed: list
    tokens: set
    catalogue: CatalogueTokens | None = None
    eos: int = EOS


def following(prefix: tuple, case: Case) -> set:
    """Tokens after a prefix, EOS where a SemID is over."""
    semids = case.semids
    tokens = {semid[len(prefix)] for semid in semids if len(semid) > len(prefix) and semid[: len(prefix)] == prefix}
    return tokens | ({case.eos} if prefix in semids else set())


def parse(tokens: list[int], case: Case) -> tuple:
    """The unfinished SemID at the end of a text."""
    current = ()
    for token in tokens:
        if token not in following(current, case) - {case.eos}:
            current = ()
        if token in following(current, case) - {case.eos}:
            current = (*current, token)
            if following(current, case) == {case.eos}:
                current = ()
    return current


def run(tokens: list[int], case: Case) -> list[int]:
    low = len(tokens)
    while low and tokens[low - 1] in case.tokens:
        low -= 1
    return tokens[low:]


def answered(prompt: list[int], case: Case) -> bool:
    """Whether a prompt ends with a SemID token and then EOS."""
    stripped = list(prompt)
    while stripped and stripped[-1] == case.eos:
        stripped.pop()
    return stripped != prompt and bool(stripped) and stripped[-1] in case.tokens


def allowed(request: SemIDRequest, prompt: list[int], output: list[int], case: Case, stand_alone: bool, room: int):
    """Tokens that may follow, or `None` for all words, and the SemID tokens that may follow these."""
    if request.mode != "next":
        inside = request.mode == "inside"
        current = parse((run(prompt, case) if inside else []) + output, case)
        children = following(current, case)
        if current and case.eos not in children:
            return children, set()
        left, depth = (room if inside else 0) - len(output), max(map(len, case.semids))
        begins = {semid[0] for semid in case.semids} if left >= depth else set()
        return None, begins | (children if current and left >= depth - len(current) else set())
    if request.start is not None:
        answer = prompt[request.start :] + output
    elif answered(prompt, case):
        return {case.eos}, set()
    else:
        end = run(prompt, case)
        if stand_alone and tuple(end) in case.semids and following(tuple(end), case) == {case.eos}:
            answer = end + output
        else:
            answer = list(parse(end, case)) + output
    current = ()
    for token in answer:
        if token not in following(current, case) - {case.eos}:
            return {case.eos}, set()
        current = (*current, token)
    return following(current, case) or {case.eos}, set()


def expected_row(logits: torch.Tensor, request, prompt, output, case, stand_alone, reported, room) -> torch.Tensor:
    """Logits (float [V]) as the processor should leave them."""
    tokens, semids = allowed(request, prompt, output, case, stand_alone, room)
    row = torch.full_like(logits, -math.inf)
    if request.mode == "next" and tokens == {case.eos}:
        row[case.eos] = 0  # a forced end
        return row
    free = tokens is None
    if free:
        tokens = set(range(len(logits))) - case.tokens | semids
    tokens = sorted(tokens)
    row[tokens] = logits[tokens]
    if not free and request.normalize == "catalogue":
        return row - row.logsumexp(-1)
    return row - logits.logsumexp(-1) if reported or not free else row
