"""Where in a Semantic ID every text stands, and what may come next; `llmrec.decoding.free_text` writes with it through
transformers, `llmrec.serving.vllm.semid_processor` through vLLM.

A *place* is a node of the trie and its level. Three ways to read a token:

inside: free text around Semantic IDs. Level 0 is outside of one; a token that begins a SemID of the catalogue enters
    the trie, which rules until the SemID is complete. A SemID that is a prefix of another may go on or be over, and
    then anything that text may hold can follow. SemID tokens that begin nothing in the catalogue (a removed item's, a
    spare code, a second-level token on its own) are masked outside too, and all of them where the text has no room
    left for a whole SemID: so no SemID is written that is none.
never: free text without Semantic IDs, such as a title.
next: one SemID and then EOS only, at score 0. The end of a SemID that is a prefix of another is EOS, scored like any
    token.

All work is on tensors of fixed shape, by level and catalogue, without waiting for the device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from llmrec.arguments import one_of
from llmrec.decoding.trie import DEAD, END, SemIDTrie

MODES = ("inside", "never", "next")
NORMALIZATIONS = ("vocabulary", "catalogue")
_FIELDS = ("semid", "semid_start", "semid_version", "semid_normalize")
_UNKNOWN = 2**31 - 1  # no token has this id (see SemIDTrie)
_LONGEST_RUN = 64  # SemIDs of a prompt that are read where no token says on its own that it begins one


@dataclass(frozen=True)
class SemIDRequest:
    """What a request wants, from its `extra_args` (over HTTP: `vllm_xargs`).

    Args:
        mode: field `semid`: `"inside"`, `"never"` or `"next"`.
        start: field `semid_start`: the prompt's tokens from there on are the answer's beginning, in mode next.
        version: field `semid_version`: number of the catalogue version; by default the newest.
        normalize: field `semid_normalize`: log-probabilities over the `"vocabulary"` or over the tokens that the
            `"catalogue"` allows.
    """

    mode: str = "inside"
    start: int | None = None
    version: int | None = None
    normalize: str = "vocabulary"

    @classmethod
    def of(cls, extra_args: Mapping | None, mode: str = "inside", normalize: str = "vocabulary") -> "SemIDRequest":
        """Reads the fields, with defaults for two of them; raises `ValueError` naming the field that is wrong."""
        fields = {name: value for name, value in (extra_args or {}).items() if name.startswith("semid")}
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            raise ValueError(f"{unknown[0]} is no field of a request; there are {', '.join(_FIELDS)}")
        for name in ("semid_start", "semid_version"):
            value = fields.get(name)
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} should be a whole number from 0 on, not {value!r}")
        mode = one_of(fields.get("semid", mode), MODES, "semid")
        normalize = one_of(fields.get("semid_normalize", normalize), NORMALIZATIONS, "semid_normalize")
        start = fields.get("semid_start") if mode == "next" else None
        return cls(mode, start, fields.get("semid_version"), normalize)


class Prefix(NamedTuple):
    """The end of a prompt that belongs to the answer.

    Attributes:
        tokens: SemID tokens.
        answer: they are the answer so far and nothing else. Otherwise they are read as text.
        alone: no SemID token stands before them.
        over: the answer is already complete, and EOS stands after it.
    """

    tokens: list[int]
    answer: bool = False
    alone: bool = False
    over: bool = False


class CatalogueTokens:
    """A trie and what prompts and masks need to know beside it.

    Args:
        trie: needs an `eos_token_id`.
        levels (list of int64 [K], *optional*): ids of all SemID tokens of the vocabulary by level, used or not
            (`semid_token_ids`); without them (SemIDs in the LLM's own words) those of the trie.
    """

    def __init__(self, trie: SemIDTrie, levels: Sequence[np.ndarray] | None = None):
        if trie.eos_token_id is None:
            raise ValueError("the trie has no eos_token_id: after a complete Semantic ID nothing could follow")
        self.trie = trie
        levels = [set(np.asarray(ids).tolist()) for ids in levels or [vocab.cpu() for vocab in trie.vocab]]
        self.tokens = frozenset().union(*levels) - {END}
        self.starters = frozenset(levels[0].difference(*levels[1:]))  # a token of the first level alone begins a SemID
        self.ids = torch.tensor(sorted(self.tokens), dtype=torch.long, device=trie.device)
        self.begins = torch.isin(self.ids, trie.vocab[0])  # whether each begins a SemID of the catalogue

    def to(self, device: torch.device | str) -> "CatalogueTokens":
        """Moves them and their trie, and returns them."""
        self.trie.to(device)
        self.ids, self.begins = self.ids.to(device), self.begins.to(device)
        return self

    def prefix(self, prompt: Sequence[int], start: int | None = None) -> Prefix:
        """What of a prompt belongs to the answer: from `start`, or else the SemID tokens that it ends with."""
        if start is not None:
            return Prefix(list(prompt[start : start + self.trie.depth + 1]), answer=True)
        end = low = len(prompt)
        while end and prompt[end - 1] == self.trie.eos_token_id:
            end -= 1
        if end < low:
            return Prefix([], over=bool(end) and prompt[end - 1] in self.tokens)
        while low and prompt[low - 1] in self.tokens and end - low < _LONGEST_RUN * self.trie.depth:
            low -= 1
            if prompt[low] in self.starters:
                break
        return Prefix(list(prompt[low:]), alone=not low or prompt[low - 1] not in self.tokens)


class Place(NamedTuple):
    """Where each of N rows stands.

    Attributes:
        level (int64 [N]): 0 is outside of a SemID, or before its first token.
        node (int64 [N]): of that level; `DEAD` where mode next has its SemID.
        room (int64 [N]): tokens that the text may still have; none for SemIDs in mode never.
    """

    level: torch.Tensor
    node: torch.Tensor
    room: torch.Tensor


class SemIDStates:
    """The states of up to `size` requests in numbered slots; slot `size` is that of rows without a state.

    Args:
        device: of the logits and the tries.
        answers_stand_alone: prompts end in text, as chat templates do, so that one complete SemID at the end
            of a prompt is the answer. Otherwise it is the history's, and the answer is still to come.
    """

    def __init__(self, size: int, device: torch.device | str, answers_stand_alone: bool = True):
        self.size = size
        self.device = torch.device(device)
        self.answers_stand_alone = answers_stand_alone
        nobody = torch.zeros(size + 1, dtype=torch.long, device=self.device)
        self.places = Place(nobody.clone(), nobody.clone(), nobody)
        self._key = torch.full_like(nobody, -1)  # the `id` of a slot's catalogue, -1 without one
        self._strict, self._among_children, self._reported = torch.zeros_like(nobody, dtype=torch.bool).repeat(3, 1)
        self._catalogues: dict[int, CatalogueTokens] = {}  # by slot

    # Slots

    def begin(
        self,
        slots: Sequence[int],
        requests: Sequence[SemIDRequest],
        prefixes: Sequence[Prefix],
        catalogues: Sequence[CatalogueTokens],
        reported: Sequence[bool],
        room: Sequence[int],
    ) -> None:
        """Starts requests in slots, whatever was there before; `reported`: log-probabilities are asked for; `room`:
        tokens that the answers may have."""
        self._catalogues.update(zip(slots, catalogues))
        never = [request.mode == "never" for request in requests]
        tokens, lengths = self.padded([[] if out else prefix.tokens for out, prefix in zip(never, prefixes)])
        room = self._tensor([0 if out else tokens for out, tokens in zip(never, room)])
        index, key = self._tensor([slots, [*map(id, catalogues)]])
        strict, among_children, asked = self._tensor(
            [[r.mode == "next" for r in requests], [r.normalize == "catalogue" for r in requests], reported],
            torch.bool,
        )
        answer, alone, over = self._tensor([prefix[1:] for prefix in prefixes], torch.bool).T
        self._key[index], self._strict[index] = key, strict
        self._among_children[index], self._reported[index] = among_children, asked
        place, tries = Place(*torch.zeros_like(index).repeat(3, 1)), self.catalogues_of(slots)
        whole = strict & alone & self.answers_stand_alone
        for column in range(tokens.shape[1]):
            given = column < lengths
            place, went_on, completed = self._read(place, index, tokens[:, column], given, strict & answer, tries)
            over = over | (whole & completed & (column == lengths - 1))
            whole = whole & went_on
        self.keep(index, Place(place.level, place.node.masked_fill(strict & over, DEAD), room))

    def end(self, slots: Sequence[int]) -> None:
        """Rows of these slots are left alone from now on."""
        for slot in slots:
            self._catalogues.pop(slot, None)
        index = self._tensor(slots)
        self._key[index], self._strict[index], self._reported[index] = -1, False, False

    def _tensor(self, values: Sequence, dtype: torch.dtype = torch.long) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def padded(self, lists: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token lists as one matrix (int64 [N, T]) and their lengths (int64 [N])."""
        rows = [torch.tensor(tokens, dtype=torch.long) for tokens in lists]
        return pad_sequence(rows, batch_first=True).to(self.device), self._tensor([*map(len, lists)])

    # Rows

    def places_of(self, slots: torch.Tensor) -> Place:
        return Place(*(values[slots] for values in self.places))

    def keep(self, slots: torch.Tensor, place: Place) -> None:
        for values, kept in zip(self.places, place):
            values[slots] = kept

    def catalogues_of(self, slots: Iterable[int]) -> dict[int, CatalogueTokens]:
        """What slots look at: the catalogues that `read` and `constrain` go through."""
        catalogues = (self._catalogues[slot] for slot in slots if slot in self._catalogues)
        return {id(catalogue): catalogue for catalogue in catalogues}

    def read(self, place: Place, slots, tokens, given, catalogues: Mapping[int, CatalogueTokens]) -> Place:
        """Where rows stand after one more token.

        Args:
            place: of N rows; slots (int64 [N]): whose rows they are.
            tokens (int64 [N]), given (bool [N]): what follows, in rows that have a token; the others stay.
        """
        return self._read(place, slots, tokens, given, self._strict[slots], catalogues)[0]

    def _read(
        self, place: Place, slots, tokens, given, strict, catalogues
    ) -> tuple[Place, torch.Tensor, torch.Tensor]:
        """`read`; also whether rows went on within their SemID, and whether they completed it (bool [N] each)."""
        key = self._key[slots].masked_fill(~given, -1)
        tokens = tokens.masked_fill(tokens < 0, _UNKNOWN)
        child, over = _child(catalogues, key, place, tokens)
        went_on, completed = (child >= 0) & ~over & given, (child >= 0) & over & given
        again = ~strict & (child < 0) & (place.level > 0)  # text after a SemID, or the beginning of the next one
        level = place.level.masked_fill(again, 0)
        root = place._replace(level=level, node=torch.where(again, 0, DEAD))
        first, first_over = _child(catalogues, key, root, tokens, levels=1)
        child, over = torch.where(again, first, child), torch.where(again, first_over, over)
        going = (child >= 0) & ~over
        level = torch.where(going, level + 1, torch.where(strict, level, 0))
        node = torch.where(going, child, torch.where(strict, DEAD, 0))
        level, node = torch.where(given, level, place.level), torch.where(given, node, place.node)
        return Place(level, node, place.room - given.long()), went_on, completed

    def constrain(self, logits: torch.Tensor, slots, place: Place, catalogues: Mapping[int, CatalogueTokens]) -> None:
        """Masks and scores the token after `place`, in place.

        Args:
            logits (float32 [N, V]): rows in a SemID become log-probabilities of what may follow, -inf elsewhere. Rows
                in free text lose the SemID tokens that cannot stand there and otherwise keep their logits, or become
                log-probabilities where those are reported.
            slots (int64 [N]): whose rows they are.
        """
        key, strict = self._key[slots], self._strict[slots]
        done = strict & (place.node < 0)
        ruled = (key >= 0) & (strict | (place.level > 0))
        choices = []  # by catalogue and level: ids and whether each may follow (int64, bool [N, W])
        for this, catalogue in catalogues.items():
            trie = catalogue.trie
            for level in range(trie.depth):
                here = (key == this) & (place.level == level) & ruled
                children = trie.children(place.node.masked_fill(~here, DEAD), level)
                valid = children.valid
                if trie.has_end[level]:  # a SemID of a text that may be over leaves the next word free
                    ends = ~strict & (valid & (children.column == 0)).any(1)
                    ruled &= ~ends
                    valid = valid & ~(ends & (place.room < trie.depth - level))[:, None]
                choices.append((trie.head_ids[level][children.column], valid))
        free = (key >= 0) & ~ruled
        scored = (ruled & ~done) | (free & self._reported[slots])
        if self.device.type != "cpu" or bool(scored.any()):
            shift = logits.logsumexp(-1).masked_fill(~scored, 0)
            logits -= shift[:, None]
        values = [_values(logits, *choice, ruled & self._among_children[slots]) for choice in choices]
        if self.device.type != "cpu" or bool(ruled.any()):
            logits.masked_fill_(ruled[:, None], -torch.inf)
        for this, catalogue in catalogues.items():
            ours, full = free & (key == this), place.room < catalogue.trie.depth
            stray = ours[:, None] & (full[:, None] | ~catalogue.begins)
            logits[:, catalogue.ids] = logits[:, catalogue.ids].masked_fill(stray, -torch.inf)
            end = catalogue.trie.eos_token_id
            logits[:, end] = logits[:, end].masked_fill(done & (key == this), 0)
        for (tokens, _), value in zip(choices, values):
            logits.scatter_reduce_(1, tokens, value, "amax")  # padding and rows of other levels hold -inf


def _child(catalogues, key, place: Place, tokens, levels: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The child of each place by a token, `DEAD` where there is none, and whether nothing but the end follows."""
    child, over = torch.full_like(place.node, DEAD), torch.zeros_like(place.node, dtype=torch.bool)
    for this, catalogue in catalogues.items():
        trie = catalogue.trie
        for level in range(levels or trie.depth):
            here = (key == this) & (place.level == level)
            node = trie.step(place.node.masked_fill(~here, DEAD), tokens, level)
            child, over = torch.where(here, node, child), over | trie.complete(node, level + 1)
    return child, over


def _values(logits, tokens, valid, among_children) -> torch.Tensor:
    """Scores of the tokens that may follow (float32 [N, W]), -inf elsewhere."""
    values = logits.gather(1, tokens).masked_fill(~valid, -torch.inf)
    total = values.logsumexp(-1)
    return values - total.masked_fill(~among_children | total.isneginf(), 0)[:, None]
