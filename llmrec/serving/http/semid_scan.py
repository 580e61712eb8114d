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
        self._items_with, self._depth = items_with, index.num_levels
        self._words = not index.adds_tokens  # SemIDs in the words of the LLM end with ";"
        tokens = {token for level in index.level_tokens for token in level}
        self._token = re.compile(
            "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ("|;" * self._words)
        )

    def items(self, text: str) -> list[str]:
        """The distinct items whose Semantic IDs stand in a text, in order; of two that fit the longer one counts."""
        found: dict[str, None] = {}
        run: list[str] = []
        end = 0
        for match in self._token.finditer(text):
            if match.start() != end:
                self._read(run, found)
                run = []
            run.append(match[0])
            end = match.end()
        self._read(run, found)
        return list(found)

    def _read(self, run: list[str], found: dict[str, None]) -> None:
        """Adds the items of adjacent tokens."""
        longest, place = self._depth + self._words, 0
        while place < len(run):
            for length in range(min(longest, len(run) - place), 0, -1):
                if items := self._items_with("".join(run[place : place + length])):
                    found |= dict.fromkeys(items)
                    place += length - 1
                    break
            place += 1
