"""What an index records of how its Semantic IDs were made: the facts in its `info`, each a typed property."""

from collections.abc import Sequence

CONTEXTUAL = ("actionpiece", "pctx")  # item tokenizers whose tokens for an item depend on the history

_KINDS = {
    "reserved": dict,
    "reserved_versions": dict,
    "views": dict,
    "domains": dict,
    "version": int,
    "ordered": bool,
    "collision": str,
    "item_tokenizer": dict,
    "item_tokenizer_fingerprint": str | None,
}


def check_info(info: dict, sizes: Sequence[int], where: str) -> None:
    """Raises `ValueError`, beginning with `where`, for a field of `info` that cannot be read as `Record` reads it;
    `sizes` are those of the codebooks."""
    for name, kind in _KINDS.items():
        if name in info and not isinstance(info[name], kind):
            raise ValueError(f"{where}: info.{name} is {info[name]!r:.80}, it should be a {kind}")
    for item, rows in info.get("reserved", {}).items():
        if not isinstance(rows, list) or not rows or not all(_within(row, sizes) for row in rows):
            raise ValueError(f"{where}: info.reserved[{item!r}] is {rows!r:.80}, which are no codes of {sizes}")
    for view, levels in info.get("views", {}).items():
        if not _within(levels, (len(sizes), len(sizes) + 1)) or not 0 <= levels[0] < levels[1]:
            raise ValueError(
                f"{where}: info.views[{view!r}] is {levels!r:.80}, which are no two of {len(sizes)} levels"
            )


def _within(numbers, sizes: Sequence[int]) -> bool:
    """Whether they are a list with a whole number from -1 on below each of `sizes`."""
    if not isinstance(numbers, list) or len(numbers) != len(sizes):
        return False
    return all(type(number) is int and -1 <= number < size for number, size in zip(numbers, sizes))


class Record:
    """Whoever makes Semantic IDs writes `info`, a dict that is saved as JSON; who reads them asks here."""

    info: dict

    @property
    def reserved(self) -> dict[str, list[list[int]]]:
        """Removed item → the codes of the SemIDs that are kept for it."""
        return self.info.get("reserved", {})

    @property
    def reserved_versions(self) -> dict[str, int]:
        """Removed item → the version that it came with."""
        later = self.info.get("reserved_versions", {})  # than the first
        return {item: later.get(item, 1) for item in self.reserved}

    @property
    def views(self) -> dict[str, list[int]]:
        """View → [first level, last level + 1], the primary view first; none where nothing was joined."""
        return self.info.get("views", {})

    @property
    def domains(self) -> dict[str, list[int]]:
        """Domain → its codebook sizes, by the codes of the first level; none where nothing was joined."""
        return self.info.get("domains", {})

    @property
    def version(self) -> int:
        """From 1 on; see `llmrec.catalogue.lifecycle`."""
        return self.info.get("version", 1)

    @property
    def ordered(self) -> bool:
        """Whether the levels have an order, coarse to fine."""
        return self.info.get("ordered", True)

    @property
    def collision(self) -> str:
        """The policy for items of equal codes; see `llmrec.catalogue.collisions`."""
        return self.info.get("collision", "keep")

    @property
    def item_tokenizer(self) -> str | None:
        """The name of the item tokenizer; `None` for ready-made and joined Semantic IDs."""
        return self.info.get("item_tokenizer", {}).get("name")

    @property
    def item_tokenizer_fingerprint(self) -> str | None:
        """Of the fitted item tokenizer that made the Semantic IDs, and can make more."""
        return self.info.get("item_tokenizer_fingerprint")

    @property
    def contextual(self) -> bool:
        """Whether the tokens of an item depend on the history: a `SequenceTokenizer` made them."""
        return self.item_tokenizer in CONTEXTUAL
