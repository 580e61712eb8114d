"""Semantic IDs that exist already: the files and columns that others publish, as a `SemIDIndex`.

A SemID may be a list of tokens, one string of tokens, or a list of codes. Known are the tokens of
- LC-Rec, LETTER, MiniOneRec, torch-rechub: `["<a_1>", "<b_2>"]`
- OpenOneRec: `<|sid_begin|><s_a_340><s_b_66><s_c_3><|sid_end|>`
- eugeneyan: `<|sid_start|><|sid_5|><|sid_300|><|sid_end|>`, numbered through all levels

Tokens stay as they are published. Markers around every item are dropped, and a log line says so: they cost two tokens
per item and say nothing. A published *model* has learned to write them: `keep_markers` makes them levels of one code.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.collisions import collision_stats
from llmrec.catalogue.semids import PATTERNS, SemIDIndex
from llmrec.files import read_json, read_parquet

logger = logging.getLogger(__name__)

MARKERS = ("<|sid_begin|>", "<|sid_start|>", "<|sid_end|>")
COLUMNS = ("semid", "codes")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def ready_made_semids(
    items: pa.Table,
    source: str,
    codebook_sizes: Sequence[int] | None = None,
    pattern: str | None = None,
    keep_markers: bool = False,
) -> SemIDIndex:
    """Semantic IDs that exist already, for exactly the items of a catalogue; items may share one.

    Args:
        source (`str`): a column of `items`, a `.json` of item id to SemID, or a `.parquet` with `item_id` and `semid`
            or `codes` (a `semids.parquet` of llmrec keeps all that it says).
        codebook_sizes (sequence of `int`, *optional*): defaults to the largest code of each level + 1, at least 256.
            Tokens that are numbered through all levels need it.
        pattern (`str`, *optional*): token pattern, see `SemIDIndex`; found from the first token where it is one of
            `PATTERNS`. For codes it defaults to `"default"`.
        keep_markers (`bool`): see the module docstring.

    Raises:
        ValueError: neither a column nor a file, an item without SemID, or a token that does not fit the pattern.
    """
    semids, where = _read(items, source)
    if isinstance(semids, SemIDIndex):
        index = semids.aligned(items)
    else:
        wanted = items["item_id"].to_pylist()
        missing = next((item for item in wanted if not _given(semids.get(item))), None)
        if missing is not None:
            raise ValueError(f"item {missing!r} has no Semantic ID in {where}")
        index = index_of_semids({item: semids[item] for item in wanted}, codebook_sizes, pattern, keep_markers)
        index.info["source"] = where
    index.info |= {"collision": "keep", "collisions_after": collision_stats(index.codes)}
    return index


def index_of_semids(
    semids: Mapping[str, str | Sequence],
    codebook_sizes: Sequence[int] | None = None,
    pattern: str | None = None,
    keep_markers: bool = False,
) -> SemIDIndex:
    """The index of `{item id: SemID}`; see `ready_made_semids`."""
    rows = {item: _split(item, semid) for item, semid in semids.items()}
    before, after = _markers(rows)
    rows = {item: row[len(before) : len(row) - len(after)] for item, row in rows.items()}
    empty = next((item for item, row in rows.items() if not row), None)
    if empty is not None:
        raise ValueError(f"item {empty!r} has an empty Semantic ID: {semids[empty]!r}")
    if all(isinstance(part, int) for row in rows.values() for part in row):
        codes = list(rows.values())
        pattern = pattern or "default"
    else:
        pattern = pattern or _find_pattern(rows)
        codes = [_codes(item, row, PATTERNS.get(pattern, pattern), codebook_sizes) for item, row in rows.items()]
    matrix = np.full((len(codes), max(map(len, codes))), -1, np.int32)
    for row, values in enumerate(codes):
        matrix[row, : len(values)] = values
    if codebook_sizes is None:
        codebook_sizes = [max(256, int(column.max()) + 1) for column in matrix.T]
    bare = SemIDIndex(list(rows), matrix, codebook_sizes, pattern)
    if not before + after:
        return bare
    logger.info("markers %s are %s", " ".join(before + after), "kept" if keep_markers else "dropped")
    if not keep_markers:
        return bare
    widths = ((0, 0), (len(before), len(after)))
    return SemIDIndex(
        bare.item_ids,
        np.pad(matrix, widths),
        [1] * len(before) + list(codebook_sizes) + [1] * len(after),
        level_tokens=[*([marker] for marker in before), *bare.level_tokens, *([marker] for marker in after)],
    )


def _read(items: pa.Table, source: str) -> tuple[Mapping | SemIDIndex, str]:
    """`{item id: SemID}` or a finished index, and what to call the source."""
    if source in items.column_names:
        return dict(zip(items["item_id"].to_pylist(), items[source].to_pylist())), f"column {source!r}"
    if source.endswith(".json"):
        semids = read_json(source)
        if not isinstance(semids, dict) or not semids:
            raise ValueError(f"{source} should hold a non-empty mapping of item id to Semantic ID")
        return semids, Path(source).name
    if source.endswith(".parquet"):
        table = read_parquet(source)
        if b"llmrec" in (table.schema.metadata or {}):
            return SemIDIndex.load(source), Path(source).name
        column = next((name for name in COLUMNS if name in table.column_names), None)
        if column is None or "item_id" not in table.column_names:
            raise ValueError(f"{source} needs columns item_id and semid or codes; it has {table.column_names}")
        ids = table["item_id"].cast(pa.string()).to_pylist()
        return dict(zip(ids, table[column].to_pylist())), Path(source).name
    raise ValueError(
        f"ready-made SemIDs {source!r} are neither a column of the catalogue nor an index.json or .parquet"
    )


def _given(semid) -> bool:
    return semid is not None and semid not in ("", [])


def _split(item: str, semid) -> list[str] | list[int]:
    """A SemID as a list of tokens or of codes."""
    if isinstance(semid, str):
        tokens = re.findall(r"<[^<>]*>", semid)
        if "".join(tokens) != re.sub(r"\s", "", semid):
            raise ValueError(f"item {item!r}: Semantic ID {semid!r} is no row of tokens like <a_1><b_2>")
        return tokens
    kinds = {type(part) for part in semid} if isinstance(semid, list | tuple) else set()
    if kinds not in ({str}, {int}):
        raise ValueError(f"item {item!r}: Semantic ID {semid!r} is no list of tokens or of whole numbers")
    return list(semid)


def _markers(rows: Mapping[str, list]) -> tuple[list[str], list[str]]:
    """The markers before and after every SemID; raises `ValueError` where an item has others than the first."""
    first = next(iter(rows.values()))
    before = first[:1] if first and first[0] in MARKERS else []
    after = first[-1:] if len(first) > 1 and first[-1] in MARKERS else []
    for item, row in rows.items():
        inner = row[len(before) : len(row) - len(after)]
        odd = next((part for part in inner if part in MARKERS), None)
        if odd is not None or row[: len(before)] != before or row[len(row) - len(after) :] != after:
            raise ValueError(f"item {item!r}: {''.join(map(str, row))!r} has other markers than the items before it")
    return before, after


def _find_pattern(rows: Mapping[str, list]) -> str:
    item, row = next(iter(rows.items()))
    for name, template in PATTERNS.items():
        if _matcher(template).fullmatch(str(row[0])):
            return name
    known = ", ".join(template.format(level="a", code=7) for template in PATTERNS.values())
    raise ValueError(f"item {item!r}: token {row[0]!r} at level 0 reads like none of {known}: give its pattern")


def _matcher(template: str) -> re.Pattern:
    text = re.escape(template).replace(re.escape("{level}"), r"(?P<level>[a-z]|s\d+)")
    return re.compile(text.replace(re.escape("{code}"), r"(?P<code>\d+)"))


def _codes(item: str, row: list, template: str, codebook_sizes: Sequence[int] | None) -> list[int]:
    """The codes of one SemID's tokens."""
    matcher, by_level = _matcher(template), "{level}" in template
    if not by_level and codebook_sizes is None:
        raise ValueError(f"tokens like {row[0]!r} number the codes of all levels: give codebook_sizes")
    codes = []
    for level, token in enumerate(row):
        match = matcher.fullmatch(str(token))
        names = (_LETTERS[level : level + 1], f"s{level}") if by_level else ()
        if match is None or (by_level and match["level"] not in names):
            expected = template.format(level=names[0] or names[1], code="N") if by_level else template
            raise ValueError(f"item {item!r}: token {token!r} at level {level + 1} should read {expected}")
        code = int(match["code"])
        if not by_level:
            first = sum(codebook_sizes[:level])
            if level >= len(codebook_sizes) or not 0 <= code - first < codebook_sizes[level]:
                raise ValueError(
                    f"item {item!r}: token {token!r} is none of level {level + 1} with codebook_sizes "
                    f"{list(codebook_sizes)}, whose numbers begin at {first}"
                )
            code -= first
        codes.append(code)
    return codes
