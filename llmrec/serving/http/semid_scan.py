"""Which Semantic IDs stand in a text."""

import re
from collections.abc import Callable, Sequence

from llmrec.catalogue.semids import SemIDIndex


class SemIDScanner:
    """Finds Semantic IDs in what a model wrote.

    Args:
        index (`SemIDIndex`): names the tokens.
        items_with (callable): Semantic ID → its items; none for one that the catalogue lacks.
    """

    def __init__(self, index: SemIDIndex, items_with: Callable[[str], Sequence[str]]):
        words = not index.adds_tokens  # SemIDs in the words of the LLM end with ";"
        self._items_with, self._longest = items_with, index.num_levels + words
        tokens = {token for level in index.level_tokens for token in level} | ({";"} if words else set())
        pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
        self._token, self._run = re.compile(pattern), re.compile(f"(?:{pattern})+")

    def items(self, text: str) -> list[str]:
        """The distinct items whose Semantic IDs stand in a text, in order; of two that fit the longer one counts."""
        item_ids: dict[str, None] = {}
        for run in self._run.finditer(text):
            tokens, place = self._token.findall(run[0]), 0
            while place < len(tokens):
                lengths = range(min(self._longest, len(tokens) - place), 0, -1)
                for length in lengths:  # where none fits, the first token is passed over
                    if items := self._items_with("".join(tokens[place : place + length])):
                        item_ids |= dict.fromkeys(items)
                        break
                place += length
        return list(item_ids)
