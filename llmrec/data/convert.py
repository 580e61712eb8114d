"""Columns brought into the types that tables need: text, ids, numbers, seconds.

A value that does not fit raises `ValueError` naming file (`where`), column (`name`) and row, counted from 1.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from llmrec.columns import is_list, plain_column

logger = logging.getLogger(__name__)

TEXT = pa.string()
UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# How a lost id looks once some earlier step has turned it into text.
_MISSING_IDS = pa.array(["", "nan", "NaN", "None", "null", "<NA>"])
# How a number or a moment that is missing looks in a text file: "", "NA", "null", "NaN", …
MISSING_NUMBERS = pa.array(pa.csv.ConvertOptions().null_values)
# ISO 8601 as logs, JavaScript and databases write it. Fractions of a second are left out, as seconds are all we keep.
_MOMENT = (
    r"^(?P<day>\d{4}-\d\d-\d\d)(?:[T ](?P<time>\d\d:\d\d(?::\d\d)?)(?:[.,]\d+)?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?$"
)
# 20140407, with the hour, minute and second or without: a date to whoever wrote it, and seconds by its digits.
_DATE_IN_DIGITS = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d){1,2})?$"
_YEAR_1, _YEAR_5000 = -62_135_596_800, 10**11
_BOOLEANS = ({"true", "false"}, {"True", "False"}, {"TRUE", "FALSE"})
# From here on, neighbouring whole numbers are the same float.
_EXACT_FLOATS = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}


def cast_column(column: pa.ChunkedArray, kind: pa.DataType, where: str, name: str) -> pa.ChunkedArray:
    """A column in another type; raises `ValueError` naming the first row that does not fit, or is not UTF-8."""

    def cast(part: pa.ChunkedArray) -> pa.ChunkedArray:
        done = part.cast(kind)
        if kind == TEXT:
            done.validate(full=True)
        return done

    expected = (
        "a whole number" if pa.types.is_integer(kind) else "a number" if pa.types.is_floating(kind) else str(kind)
    )
    return _converted(plain_column(column), cast, expected, where, name)


def as_text(column: pa.ChunkedArray, where: str, name: str, separators: Sequence[str] = ()) -> pa.ChunkedArray:
    """A column as text, null where it has no value (null, NaN).

    With `separators`, of a list's elements and, outermost, of lists in lists, lists are joined; elements without text
    (null, NaN, blank) and objects among them are left out.
    """
    column = plain_column(column)
    if is_list(column.type) and separators:
        element = column.type
        while is_list(element):
            element = element.value_type
        if pa.types.is_struct(element) or pa.types.is_map(element):
            logger.warning("%s, column %r: its lists hold objects (%s), which are no text", where, name, element)

        def join(part: pa.ChunkedArray) -> pa.ChunkedArray:
            return pa.chunked_array([_joined(part.combine_chunks(), *separators)], TEXT)

        return _converted(column, join, "text", where, name)
    return cast_column(_without_nan(column), TEXT, where, name)


def as_ids(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """Ids as text; whole floats and decimals, as ids with gaps come from pandas and databases, as whole numbers."""
    column = plain_column(column)
    if pa.types.is_floating(column.type):
        ids = cast_column(_exact_floats(column, "an id", where, name), pa.int64(), where, name)
    elif pa.types.is_decimal(column.type):
        ids = cast_column(column, pa.decimal128(38, 0), where, name)
    else:
        ids = column
    ids = cast_column(ids, TEXT, where, name)
    missing = pc.or_(ids.is_null(), pc.is_in(pc.utf8_trim_whitespace(ids), _MISSING_IDS))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise ValueError(f"{where}, column {name!r}, row {row + 1}: the id is missing ({column[row].as_py()!r})")
    return ids


def as_id_lists(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """Lists of ids as lists of text."""
    column = plain_column(column)
    if not is_list(column.type):
        return cast_column(column, pa.list_(TEXT), where, name)
    row = pc.index(column.is_null(), True).as_py()
    if row >= 0:
        refuse(column, row, "is no list of ids; give an empty list where there is no history", where, name)
    lists = column.combine_chunks()
    values = pa.chunked_array([lists.flatten()])
    try:
        ids = as_ids(values, where, name).combine_chunks()
    except ValueError as error:
        # The row of an element is that of its list.
        message = re.sub(r"row (\d+)", lambda m: f"row {_parents(lists)[int(m[1]) - 1] + 1}", str(error), count=1)
        raise ValueError(message) from error
    return pa.chunked_array([pa.ListArray.from_arrays(_offsets(lists), ids, mask=lists.is_null())])


def as_number(column: pa.ChunkedArray, kind: pa.DataType, where: str, name: str) -> pa.ChunkedArray:
    """Numbers, also from text; null where there is none (null, NaN, or text such as "" and "NA")."""
    column = plain_column(column)
    if column.type == TEXT:
        column = _without_words(column)
        if kind == pa.int64():
            try:
                return _whole_numbers(column)
            except pa.ArrowInvalid:
                pass  # "12.0" is a whole number, too
        column = cast_column(column, pa.float64(), where, name)
    if kind == pa.int64():
        column = _exact_floats(column, "a number", where, name)
    return cast_column(_without_nan(column), kind, where, name)


def as_seconds(column: pa.ChunkedArray, unit: str, where: str, name: str) -> pa.ChunkedArray:
    """Whole seconds since 1970 (UTC), int64: from numbers of a `unit` (s, ms, us, ns), dates and ISO 8601 text, or
    from text in the form that `unit` says (`"%d.%m.%Y %H:%M"`)."""
    column = plain_column(column)
    kind = column.type
    if kind == TEXT and "%" in unit:

        def read(part: pa.ChunkedArray) -> pa.ChunkedArray:
            return pc.strptime(part, format=unit, unit="s").cast(pa.int64())

        return _converted(_without_words(column), read, f"a moment of the form {unit}", where, name)
    unit = "s" if "%" in unit else unit
    if kind == TEXT:
        column = _without_words(column)
        try:
            column = _whole_numbers(column)
        except pa.ArrowInvalid:
            try:
                column = column.cast(pa.float64())
            except pa.ArrowInvalid:
                expected = (
                    "a number, or an ISO 8601 moment such as 2014-04-07T10:51:09.277Z; for others say their form, "
                    "e.g. timestamp_unit: '%d.%m.%Y %H:%M'"
                )
                return _converted(column, _moments, expected, where, name)
    elif pa.types.is_timestamp(kind):
        return _floor_divided(column.cast(pa.int64()), UNITS_PER_SECOND[kind.unit])
    elif pa.types.is_date(kind):
        return column.cast(pa.timestamp("s")).cast(pa.int64())
    elif pa.types.is_temporal(kind) or pa.types.is_boolean(kind):
        refuse(column, 0, f"({kind}) is no moment", where, name)
    if not pa.types.is_integer(column.type):
        column = pc.floor(_exact_floats(column, "a moment", where, name, UNITS_PER_SECOND[unit]))
    column = cast_column(column, pa.int64(), where, name)
    if _are_dates_in_digits(column):
        row = pc.index(column.is_valid(), True).as_py()
        problem = "and all others look like dates without hyphens; write 2014-04-07, or give a column of timestamps"
        refuse(column, row, problem, where, name)
    seconds = _floor_divided(column, UNITS_PER_SECOND[unit])
    for outside, problem in (
        (pc.greater(seconds, _YEAR_5000), "lies past the year 5000; set timestamp_unit: ms?"),
        (pc.less(seconds, _YEAR_1), "lies before the year 1; check timestamp_unit"),
    ):
        row = pc.index(outside, True).as_py()
        if row >= 0:
            refuse(column, row, f"{unit} {problem}", where, name)
    return seconds


def exact_numbers(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """Text of a text file as int64, float64 or bool where every value is written as such a number is; else as it is.

    So 007, 1e5, 1.50, +1, NA and inf keep their form, and a column that holds one of them is text. The empty text
    becomes null in a column of numbers.
    """
    values = [text for text in column.unique().to_pylist() if text]
    numbers = pc.if_else(pc.equal(column, ""), None, column)
    if not values:
        return column
    if any(set(values) <= pair for pair in _BOOLEANS):
        return numbers.cast(pa.bool_())
    try:
        whole = pa.array(values).cast(pa.int64())
        if whole.cast(TEXT).to_pylist() == values:
            return numbers.cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    try:
        floats = pa.array(values).cast(pa.float64()).to_pylist()
    except pa.ArrowInvalid:
        return column
    for text, value in zip(values, floats):
        if not np.isfinite(value) or text != repr(value) and not (value.is_integer() and text == repr(int(value))):
            logger.warning("%s, column %r stays text: %r would become the number %s", where, name, text, value)
            return column
    return numbers.cast(pa.float64()) if len(set(floats)) == len(values) else column


def column_of(values: Sequence) -> pa.Array:
    """A column of values as JSON has them.

    Where they are of several kinds it holds text, in lists as deep as the deepest among them, and no objects; objects
    whose fields are of several kinds become JSON.
    """
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if all(value is None or isinstance(value, dict) for value in values):
            return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])
        depth = max(map(_depth, values))
        kind = TEXT
        for _ in range(depth):
            kind = pa.list_(kind)
        return pa.array([_nested(value, depth) for value in values], kind)


def _depth(value) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _nested(value, depth: int):
    if value is None or isinstance(value, dict) or value != value:
        return None
    if depth:
        parts = value if _depth(value) == depth else [value]  # a list among lists of lists is one of those
        return [_nested(part, depth - 1) for part in parts]
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        str(int(value))
        if isinstance(value, float) and abs(value) < _EXACT_FLOATS[pa.float64()] and value == int(value)
        else str(value)
    )


def _converted(column: pa.ChunkedArray, convert: Callable, expected: str, where: str, name: str) -> pa.ChunkedArray:
    try:
        return convert(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        problem = f"({column.type}) is not {expected}"
        if "invalid utf8" in str(error).lower():
            problem = "is not valid UTF-8; for a CSV say what it is, e.g. encoding: latin-1"
        refuse(column, _first_failure(column, convert), problem, where, name, error)


def refuse(column: pa.ChunkedArray, row: int, problem: str, where: str, name: str, cause: Exception | None = None):
    """Raises `ValueError` with file, column, row (from 0) and value of what is wrong, and the problem."""
    try:
        shown = repr(column[row].as_py())
    except UnicodeDecodeError:
        shown = repr(column[row].cast(pa.binary()).as_py())
    raise ValueError(f"{where}, column {name!r}, row {row + 1}: {shown[:80]} {problem}") from cause


def _first_failure(column: pa.ChunkedArray, convert: Callable) -> int:
    """The first row at which `convert` fails, by bisection; 0 if no single row is to blame."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(pa.chunked_array([column.slice(low, middle - low).combine_chunks()], column.type))
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    return low


def _joined(lists: pa.ListArray, separator: str, outer: str) -> pa.Array:
    values = lists.flatten()
    if is_list(values.type):
        values, separator = _joined(values, separator, separator), outer
    elif pa.types.is_struct(values.type) or pa.types.is_map(values.type):
        values = pa.nulls(len(values), TEXT)
    else:
        values = _without_nan(values).cast(TEXT)
        values.validate(full=True)
    filled = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(values), ""), False)
    counts = np.bincount(_parents(lists)[filled.to_numpy(zero_copy_only=False)], minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, values.filter(filled), mask=lists.is_null()), separator)


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def _offsets(lists: pa.ListArray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(_lengths(lists))]).astype(np.int32))


def _parents(lists: pa.ListArray) -> np.ndarray:
    """The number of the list that each of the flat values stands in."""
    return np.repeat(np.arange(len(lists)), _lengths(lists))


def _exact_floats(column: pa.ChunkedArray, what: str, where: str, name: str, unit: int = 1) -> pa.ChunkedArray:
    """Floats as float64 without NaN, refused where they are too large to tell whole units apart; others as is."""
    if not pa.types.is_floating(column.type):
        return column
    floats = _without_nan(column.cast(pa.float64()))
    row = pc.index(pc.greater_equal(pc.abs(floats), _EXACT_FLOATS[column.type] * unit), True).as_py()
    if row >= 0:
        problem = f"is {what} that has lost digits as a {column.type}; give text or whole numbers"
        refuse(column, row, problem, where, name)
    return floats


def _without_nan(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _without_words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of numbers or moments without white space around it, null where it says that there is none."""
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(column, MISSING_NUMBERS), None, column)


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as int64; raises `pa.ArrowInvalid` where it is none, 0x10 included."""
    if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
        raise pa.ArrowInvalid("hexadecimal")
    return column.cast(pa.int64())


def _are_dates_in_digits(numbers: pa.ChunkedArray) -> bool:
    given = numbers.drop_null()
    parts = (given.slice(0, 100), given)  # the first few say no for nearly every column
    return len(given) > 0 and all(
        pc.all(pc.match_substring_regex(part.cast(TEXT), _DATE_IN_DIGITS)).as_py() for part in parts
    )


def _moments(column: pa.ChunkedArray) -> pa.ChunkedArray:
    parts = pc.extract_regex(pc.ascii_upper(column), _MOMENT)
    if parts.null_count > column.null_count:
        raise pa.ArrowInvalid("not ISO 8601")
    day, time, zone = (pc.struct_field(parts, field) for field in ("day", "time", "zone"))
    time = pc.if_else(pc.equal(time, ""), "00:00", time)
    zone = pc.if_else(pc.is_in(zone, pa.array(["", "UTC", "GMT"])), "Z", zone)
    written = pc.binary_join_element_wise(day, pc.binary_join_element_wise(time, zone, ""), "T")
    return written.cast(pa.timestamp("s", "UTC")).cast(pa.int64())


def _floor_divided(column: pa.ChunkedArray, divisor: int) -> pa.ChunkedArray:
    """Before 1970 as after it: the second in which the moment lies."""
    quotient = pc.divide(column, divisor)
    return pc.subtract(quotient, pc.greater(pc.multiply(quotient, divisor), column).cast(pa.int64()))
