"""Semantic IDs as others write them: their tokens and markers, and the codes that these name.

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
from string import Formatter, ascii_lowercase

import numpy as np

from llmrec.arguments import did_you_mean

logger = logging.getLogger(__name__)

PATTERNS = {
    "default": "<{level}_{code}>",
    "openonerec": "<s_{level}_{code}>",
    "eugeneyan": "<|sid_{code}|>",
}
LARGEST_CODEBOOK = 2**22  # tokens of all levels: each becomes a row of the model's embeddings
_LONGEST_PATTERN = 64
MARKERS = ("<|sid_begin|>", "<|sid_start|>", "<|sid_end|>")


def template_of(pattern: str) -> str:
    """The template of a name in `PATTERNS`, or `pattern` if it is one itself; `ValueError` if it is neither."""
    template = PATTERNS.get(pattern, pattern)
    try:
        parts = [part for part in Formatter().parse(template[: _LONGEST_PATTERN + 1]) if part[1] is not None]
    except ValueError:  # a single brace
        parts = []
    fields, plain = {field for _, field, _, _ in parts}, not any(form or how for _, _, form, how in parts)
    if "code" not in fields or not fields <= {"code", "level"} or not plain or len(template) > _LONGEST_PATTERN:
        raise ValueError(
            f"SemID pattern {pattern!r:.80} is neither one of {', '.join(PATTERNS)} nor a template of at most "
            f"{_LONGEST_PATTERN} characters with {{code}}, or {{level}} and {{code}}, as they stand"
            f"{did_you_mean(pattern, PATTERNS)}"
        )
    return template


def pattern_tokens(template: str, codebook_sizes: Sequence[int]) -> list[list[str]]:
    """The tokens that a template with `{level}` and/or `{code}` gives to the codes, by level."""
    first, tokens = 0, []
    if sum(codebook_sizes) > LARGEST_CODEBOOK:
        raise ValueError(
            f"codebook_sizes {list(codebook_sizes)!r:.80}: {sum(codebook_sizes)} codes are more than "
            f"{LARGEST_CODEBOOK}, and each would be a token"
        )
    for level, size in enumerate(codebook_sizes):
        name = ascii_lowercase[level] if len(codebook_sizes) <= len(ascii_lowercase) else f"s{level}"
        tokens.append([template.format(level=name, code=first + code) for code in range(size)])
        first += 0 if "{level}" in template else size
    return tokens


def mapping_of_semids(value, where: str) -> Mapping:
    """`value`, if it is a non-empty mapping; otherwise raises a `ValueError` that names `where` it came from."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where} should hold a non-empty mapping of item id to Semantic ID")
    return value


def parse_semids(
    semids: Mapping[str, str | Sequence],
    codebook_sizes: Sequence[int] | None = None,
    pattern: str | None = None,
    keep_markers: bool = False,
) -> tuple[np.ndarray, Sequence[int], str, list[list[str]] | None]:
    """The codes of `{item id: SemID}`, int32 `[N, L]`, -1 after the last code of a row; the sizes of the codebooks,
    the pattern, and where it does not give all tokens, the tokens by level; see `SemIDIndex.from_semids`.
    """
    template = None if pattern is None else template_of(pattern)
    rows = {item: _split(item, semid) for item, semid in semids.items()}
    before, after = _markers(rows)
    rows = {item: row[len(before) : len(row) - len(after)] for item, row in rows.items()}
    for item, row in rows.items():
        if not row:
            raise ValueError(f"item {item!r} has an empty Semantic ID: {semids[item]!r}")
    if all(isinstance(part, int) for row in rows.values() for part in row):
        lists, pattern = list(rows.values()), pattern or "default"
    else:
        pattern = pattern or _find_pattern(rows)
        lists = _codes(rows, template or PATTERNS[pattern], codebook_sizes)
    for item, row in zip(rows, lists):
        for level, code in enumerate(row):
            if not 0 <= code < LARGEST_CODEBOOK:
                raise ValueError(
                    f"item {item!r}: code {code} at level {level} is outside 0..{LARGEST_CODEBOOK - 1}: each code up "
                    "to the largest would be a token of the model"
                )
    codes = np.full((len(lists), max(map(len, lists))), -1, np.int32)
    for row, values in zip(codes, lists):
        row[: len(values)] = values
    sizes = [max(256, int(column.max()) + 1) for column in codes.T] if codebook_sizes is None else list(codebook_sizes)
    if before + after:
        logger.info("markers %s are %s", " ".join(before + after), "kept" if keep_markers else "dropped")
    if not (before + after and keep_markers):
        return codes, sizes, pattern, None
    tokens = pattern_tokens(template_of(pattern), sizes)
    tokens = [*([marker] for marker in before), *tokens, *([marker] for marker in after)]
    codes = np.pad(codes, ((0, 0), (len(before), len(after))))
    return codes, list(map(len, tokens)), "default", tokens


def _split(item: str, semid) -> list[str] | list[int]:
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
        stop = len(row) - len(after)
        odd = any(part in MARKERS for part in row[len(before) : stop])
        if odd or row[: len(before)] != before or row[stop:] != after:
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


def _codes(rows: Mapping[str, list], template: str, codebook_sizes: Sequence[int] | None) -> list[list[int]]:
    matcher, by_level = _matcher(template), "{level}" in template
    if not by_level and codebook_sizes is None:
        token = next(iter(rows.values()))[0]
        raise ValueError(f"tokens like {token!r} number the codes of all levels: give codebook_sizes")

    def code_of(item: str, level: int, token: str | int) -> int:
        match = matcher.fullmatch(str(token))
        names = (ascii_lowercase[level : level + 1], f"s{level}") if by_level else ()
        if match is None or (by_level and match["level"] not in names):
            expected = template.format(level=names[0] or names[1], code="N") if by_level else template
            raise ValueError(f"item {item!r}: token {token!r} at level {level + 1} should read {expected}")
        code = int(match["code"])
        if by_level:
            return code
        first = sum(codebook_sizes[:level])
        if level >= len(codebook_sizes) or not 0 <= code - first < codebook_sizes[level]:
            raise ValueError(
                f"item {item!r}: token {token!r} is none of level {level + 1} with codebook_sizes "
                f"{list(codebook_sizes)}, whose numbers begin at {first}"
            )
        return code - first

    return [[code_of(item, level, token) for level, token in enumerate(row)] for item, row in rows.items()]
