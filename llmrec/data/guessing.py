"""What the columns of a user's files are, and how values are written: guessed from names and from all values.

`llmrec new` writes the guesses, with their reasons, into a YAML. One that is needed and not plain is refused, with the
columns that there are.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import product
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of
from llmrec.data.convert import MISSING_NUMBERS, TEXT, UNITS_PER_SECOND, as_number, as_seconds, as_text
from llmrec.data.spelling import decimal_of, lists_in, plain_numbers
from llmrec.data.validate import INTERACTION_TYPES, ITEM_TYPES

# What says the meaning of a column, in English, German and some French, Spanish and Italian.
_WORDS = {
    "user_id": "user uid customer client visitor member account reviewer buyer shopper session kunde kunden benutzer "
    "nutzer cliente utilisateur usuario acheteur",
    "item_id": "item product prod sku asin isbn ean gtin article artikel produkt movie film track song book stock "
    "produit producto articulo prodotto",
    "timestamp": "timestamp time date datetime when at ts moment datum zeit zeitpunkt fecha heure",
    "rating": "rating ratings stars score overall bewertung sterne",
    "title": "title name titel bezeichnung titre nom titulo nombre",
    "price": "price preis prix precio prezzo",
    "categories": "categories category genre genres kategorie kategorien warengruppe warengruppen categoria categorie",
    "brand": "brand marke manufacturer hersteller marque marca",
    "description": "description beschreibung descripcion descrizione",
}
WORDS = {meaning: frozenset(words.split()) for meaning, words in _WORDS.items()}
_ENDINGS = ("nummer", "number", "code", "num", "key", "id", "nr", "no")
_TIMES = ("date", "time", "datum", "zeit", "zeitpunkt")
_DAYS = "%d.%m.%Y %d/%m/%Y %m/%d/%Y %Y/%m/%d %d-%m-%Y %m-%d-%Y %Y%m%d %d.%m.%y %d/%m/%y %m/%d/%y".split()
_HOURS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", "%H%M%S")
_1990, _2100 = 631_152_000, 4_102_444_800
_PRICE = r"(\D*)(\d(?:[\d.,\s]*\d)?)(\D*)"


class Guess(NamedTuple):
    """The value of a setting, a column's name for instance, and why it is that."""

    value: object
    why: str


class Moments(NamedTuple):
    """How a column of moments is written: its `timestamp_unit` (`None`: as it is), and its first and last day."""

    unit: str | None
    first: str
    last: str


def guess_interactions(table: pa.Table, where: str, given: Mapping[str, str]) -> dict[str, Guess]:
    """Standard name → own column of the user, the item, the time (none where `given` says so with ""), the rating; and
    `timestamp_unit`, where the time needs one.

    Args:
        given: standard name → own name, that the user said; `timestamp_unit` too.

    Raises:
        ValueError: naming the columns and what to say: no column, or several, can be one that is needed; or its
            moments are written in no way, or in several ways, that is known.
    """
    given = dict(given)
    unit = given.pop("timestamp_unit", None)
    found = _said(table, where, given, INTERACTION_TYPES, "columns")
    for meaning in ("user_id", "item_id"):
        if meaning not in found:
            found[meaning] = _id_column(table, where, meaning)
    if "timestamp" not in given:
        found["timestamp"] = _time_column(table, where, found.values(), unit)
    if found.get("timestamp"):
        name = found["timestamp"].value
        moments = _moments(table, where, name, unit)
        found["timestamp"] = Guess(name, f"{found['timestamp'].why}; from {moments.first} to {moments.last}")
        if moments.unit:
            example = _example(table[name])
            found["timestamp_unit"] = Guess(moments.unit, f"how {example} is written; the only way that fits all")
    if "rating" not in given and (name := _optional(table, "rating", found.values())):
        if _number_written(table[name]) is not None:
            found["rating"] = Guess(name, "its name; used where min_rating asks")
    return {meaning: guess for meaning, guess in found.items() if guess}


def guess_items(
    table: pa.Table, where: str, given: Mapping[str, str], bought: pa.ChunkedArray, source: str
) -> dict[str, Guess]:
    """Standard name → own column of the items; of those that are not needed, what there is.

    Args:
        bought: the ids of the interactions, which one column of the items holds; `source`: the name of theirs.

    Raises:
        ValueError: naming the columns and what to say: no column, or several, can be the ids or the titles.
    """
    found = _said(table, where, given, ITEM_TYPES, "item_columns")
    if "item_id" not in found:
        found["item_id"] = _column_of_ids(table, where, bought, source)
    if "title" not in found:
        found["title"] = _title_column(table, where, found.values())
    for meaning in ("price", "categories", "brand", "description"):
        if meaning not in given and (name := _optional(table, meaning, found.values())):
            found[meaning] = Guess(name, "its name")
    return {meaning: guess for meaning, guess in found.items() if guess}


def price_written(column: pa.ChunkedArray) -> tuple[str | None, str | None] | None:
    """`(price_format, decimal)` of prices, `None` each where there is none; `None` alone where they are not all
    written in one way that can be read in one way."""
    if column.type != TEXT:
        return None if _number_written(column) is None else (None, None)
    found = [re.fullmatch(_PRICE, value) for value in _distinct(column)]
    formats = {(one[1].strip(), one[3].strip()) for one in found if one}
    if None in found or len(formats) != 1:
        return None
    numbers = [re.sub(r"\s", "", one[2]) for one in found]
    decimal = _decimal(numbers)
    if decimal is None or (decimal == "." and all(re.fullmatch(r"\d{1,3}(\.\d{3})*", number) for number in numbers)):
        return None  # 1.299 may be a thousand
    before, after = formats.pop()
    space = " " if any(" " in one[0] for one in found) else ""
    written = f"{before}{space if before else ''}{{}}{space if after else ''}{after}"
    return None if written == "{}" else written, decimal or None


def lists_written(column: pa.ChunkedArray, meaning: str | None) -> tuple[dict, str] | None:
    """The rule of `item_lists` for text that is a list, and an example: categories in JSON, or with `>` or `/`, go
    from wide to narrow, others stand side by side; in own columns `|` too separates."""
    if column.type != TEXT:
        return None
    found = lists_in(column, meaning)
    if found is None and meaning is None:
        bars = column.filter(pc.fill_null(pc.match_substring_regex(column, r"\S\|\S"), False))
        found = (bars[0].as_py(), "|") if len(bars) else None
    if found is None:
        return None
    example, written = found
    narrow = meaning == "categories" and written in ("json", ">", "/")
    return {"path" if narrow else "several": written}, example


def words_of(name: str) -> list[str]:
    """The words of a column's name: `CustomerID`, `customer_id`, `Kundennr`."""
    parts = re.findall(r"[^\W_]+", re.sub(r"([^\W\d_A-Z])([A-Z])", r"\1 \2", name))
    words = []
    for part in map(str.lower, parts):
        stems = [(part.removesuffix(end), end) for end in _ENDINGS if part.endswith(end) and part != end]
        known = next((stem for stem in stems if any(stem[0] in known for known in WORDS.values())), (part,))
        words += known
    return words


def _said(table: pa.Table, where: str, given: Mapping, known: Iterable, flag: str) -> dict[str, Guess | None]:
    found: dict[str, Guess | None] = {}
    for meaning, name in given.items():
        one_of(meaning, known, f"--{flag}")
        if name and name not in table.column_names:
            raise ValueError(f"--{flag} {meaning}={name}: {where} has the columns {_columns(table)}")
        found[meaning] = Guess(name, "as you said") if name else None
    return found


def _columns(table: pa.Table) -> str:
    return ", ".join(map(str, table.column_names))


def _refuse(table: pa.Table, where: str, meaning: str, flag: str, several: Iterable[str] = (), more: str = ""):
    several = list(several)
    begin = f"{' and '.join(several)} could each be" if several else "no column says by its name that it is"
    raise ValueError(
        f"{where}: {begin} the {meaning}; it has the columns {_columns(table)}; say --{flag} {meaning}=COLUMN{more}"
    )


def _id_names(table: pa.Table, meaning: str) -> dict[str, tuple]:
    """Columns that may be ids of this kind, with what orders them: the standard name, then the shortest."""
    found = {}
    for name in map(str, table.column_names):
        words = words_of(name)
        core = words[:-1] if len(words) > 1 and words[-1] in _ENDINGS else words
        if core and core[-1] in WORDS[meaning]:
            found[name] = name.lower() != meaning, len(core)
    return found


def _best(found: Mapping[str, tuple]) -> list[str]:
    return [name for name, order in found.items() if order == min(found.values())]


def _id_column(table: pa.Table, where: str, meaning: str) -> Guess:
    names = _best(_id_names(table, meaning))
    if len(names) != 1:
        _refuse(table, where, meaning, "columns", names)
    column = table[names[0]]
    return Guess(names[0], f"its name; {pc.count_distinct(column).as_py()} different, such as {_example(column)}")


def _time_column(table: pa.Table, where: str, taken: Iterable, unit: str | None) -> Guess:
    free = _free(table, taken)
    named = [name for name in free if _says_time(name)]
    fits = [name for name in named if ways_of_moments(table[name], unit)]
    exact = [name for name in fits if name.lower() == "timestamp"]
    names = exact or fits or named
    if not names:  # a column of dates by its values; numbers alone would say nothing
        kinds = {name: table[name].type for name in free}
        names = [name for name in free if pa.types.is_temporal(kinds[name]) or not _are_numbers(table[name])]
        names = [name for name in names if ways_of_moments(table[name], unit)]
    if len(names) != 1:
        more = ", or --columns timestamp= where the rows stand in the order of time"
        _refuse(table, where, "timestamp", "columns", names, more)
    return Guess(names[0], "its name" if named else "the only column whose values are moments")


def _says_time(name: str) -> bool:
    return any(word in WORDS["timestamp"] or word.endswith(_TIMES) for word in words_of(name))


def _moments(table: pa.Table, where: str, name: str, unit: str | None) -> Moments:
    ways = ways_of_moments(table[name], unit)
    if len(ways) == 1:
        return ways[0]
    say = "say --timestamp_unit, one of s, ms, us, ns, or the form as strptime reads it: '%d.%m.%Y %H:%M'"
    example = f"{where}, column {name!r}: {_example(table[name])}"
    if ways:
        raise ValueError(f"{example} fits {' and '.join(repr(way.unit) for way in ways)}: {say}")
    if unit is not None:
        raise ValueError(f"{example} and the others are not all written as the given {unit!r}: {say}")
    raise ValueError(f"{example} and the others are moments in no way that is known, between 1990 and 2100: {say}")


def ways_of_moments(column: pa.ChunkedArray, unit: str | None = None) -> list[Moments]:
    """All ways in which all values of a column are moments between 1990 and 2100; of any time in the one `unit`."""
    if not pc.any(column.is_valid()).as_py():
        return []
    if unit is not None:
        units = [unit]
    elif column.type == TEXT and not _are_numbers(column):
        units = [None, *(day + hour for day, hour in product(_DAYS, _HOURS))]
    elif column.type == TEXT:
        units = [*UNITS_PER_SECOND, "%Y%m%d", "%Y%m%d%H%M%S"]
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        units = [*UNITS_PER_SECOND]
    else:
        units = [None] if pa.types.is_temporal(column.type) else []
    ways = []
    for each in units:
        try:
            as_seconds(column.slice(0, 1000), each or "s", "", "")  # the first few say no for nearly every way
            ends = pc.min_max(as_seconds(column, each or "s", "", ""))
        except ValueError:
            continue
        first, last = ends["min"].as_py(), ends["max"].as_py()
        if first is not None and (unit is not None or _1990 <= first <= last <= _2100):
            days = (f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d}" for second in (first, last))
            ways.append(Moments(each, *days))
    return ways


def _column_of_ids(table: pa.Table, where: str, bought: pa.ChunkedArray, source: str) -> Guess:
    """The column that holds what was bought: it must be most of it, and every id once."""
    shares = {}
    for name in map(str, table.column_names):
        try:
            ids = as_text(table[name], where, name)
        except ValueError:
            continue
        if not ids.null_count and pc.count_distinct(ids).as_py() == len(ids):
            share = pc.mean(pc.is_in(bought, ids.combine_chunks()).cast(pa.float64())).as_py()
            if share >= 0.5:
                shares[name] = -share, name != source, *_id_names(table, "item_id").get(name, (True, 99))
    names = _best(shares)
    if len(names) != 1:
        begin = f"{' and '.join(names)} could each be" if names else "no column holds, each once, most of"
        raise ValueError(
            f"{where}: {begin} the item_id, such as {bought[0].as_py()!r} of the interactions' column {source!r}; it "
            f"has the columns {_columns(table)}; say --item_columns item_id=COLUMN"
        )
    share = -shares[names[0]][0]
    return Guess(names[0], f"{len(table)} different; {share:.1%} of the interactions' {source} are among them")


def _title_column(table: pa.Table, where: str, taken: Iterable) -> Guess:
    others = ("user_id", "brand", "categories", "price")
    found = {}
    for name in _free(table, taken):
        words = words_of(name)
        last = words[-1] if words else ""
        if not any(last == word or (len(word) > 4 and last.endswith(word)) for word in WORDS["title"]):
            continue
        if not any(word in WORDS[other] for word in words for other in others):
            found[name] = name.lower() != "title", bool({*words[:-1]} - WORDS["item_id"]), len(words)
    names = _best(found)
    if len(names) != 1:
        _refuse(table, where, "title", "item_columns", names)
    return Guess(names[0], f"its name; such as {_example(table[names[0]])}")


def _optional(table: pa.Table, meaning: str, taken: Iterable) -> str | None:
    found = {}
    for name in _free(table, taken):
        words = words_of(name)
        if {*words} & WORDS[meaning] and words[-1] not in _ENDINGS:
            found[name] = name.lower() != meaning, len(words)
    return next(iter(_best(found)), None)


def _free(table: pa.Table, taken: Iterable) -> list[str]:
    used = {guess.value for guess in taken if guess}
    return [name for name in map(str, table.column_names) if name not in used]


def _distinct(column: pa.ChunkedArray) -> list[str]:
    values = pc.utf8_trim_whitespace(column).unique()
    return values.filter(pc.invert(pc.is_in(values, MISSING_NUMBERS))).drop_null().to_pylist()


def _decimal(numbers: list[str]) -> str | None:
    """The decimal sign of numbers as text, "" where they have none, `None` where it can be read in two ways."""
    if any("," in number for number in numbers):
        return decimal_of(numbers)
    return "." if any("." in number for number in numbers) else ""


def _number_written(column: pa.ChunkedArray) -> str | None:
    """`_decimal` of a column of numbers, `None` where it holds others."""
    decimal = _decimal(_distinct(column)) if column.type == TEXT else ""
    try:
        plain = plain_numbers(column, decimal or ".", "", "") if column.type == TEXT else column
        as_number(plain, pa.float64(), "", "")
    except ValueError:
        return None
    return decimal


def _are_numbers(column: pa.ChunkedArray) -> bool:
    return _number_written(column) is not None


def _example(column: pa.ChunkedArray) -> str:
    filled = column.drop_null()
    filled = filled.filter(pc.not_equal(filled, "")) if filled.type == TEXT else filled
    return f"{str(filled[0].as_py())[:60]!r}" if len(filled) else "nothing"
