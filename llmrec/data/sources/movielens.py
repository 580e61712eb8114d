"""MovieLens as GroupLens ships it: `ml-latest*` and `ml-25m` (CSV) or `ml-1m` (`::`-separated, Latin-1).

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015; see its own terms of use.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from llmrec.data.rows import with_columns
from llmrec.data.sources.tables import read_fields, read_file, reading
from llmrec.data.validate import standard_interactions, standard_items

_COLUMNS = {"user_id": "userId", "item_id": "movieId"}


def load_movielens(folder: str) -> tuple[pa.Table, pa.Table]:
    """Loads ratings.csv and movies.csv, or ratings.dat and movies.dat, from a folder.

    The year leaves the title for a column `year` (int16); genres become `categories` joined by " | ".
    """
    folder = Path(folder)
    if (folder / "ratings.dat").exists():
        names = (folder / "ratings.dat", folder / "movies.dat")
        # "1::1193::5::978300760" read with ":" has an empty column between every two.
        columns = ["userId", "_1", "movieId", "_2", "rating", "_3", "timestamp"]
        types = {"userId": pa.string(), "movieId": pa.string(), "rating": pa.float64(), "timestamp": pa.int64()}
        with reading(names[0]):
            ratings = pa.csv.read_csv(
                names[0],
                read_options=pa.csv.ReadOptions(column_names=columns, use_threads=False),
                parse_options=pa.csv.ParseOptions(delimiter=":"),
                convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
        movies = read_fields(names[1], "::", ("movieId", "title", "genres"), "latin-1")
    elif (folder / "ratings.csv").exists():
        names = (folder / "ratings.csv", folder / "movies.csv")
        ratings, movies = map(read_file, names)
    else:
        raise ValueError(f"{folder} holds neither ratings.csv nor ratings.dat: it is no MovieLens folder")
    interactions = standard_interactions(ratings, str(names[0]), _COLUMNS)
    items = standard_items(movies, str(names[1]), {"item_id": "movieId", "categories": "genres"})
    parts = pc.extract_regex(items["title"], r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$").combine_chunks()
    dated = parts.is_valid()
    title = pc.if_else(dated, parts.field("title"), items["title"])
    year = pc.if_else(dated, parts.field("year"), None).cast(pa.int16())
    genres = pc.replace_substring(items["categories"], "(no genres listed)", "")
    genres = pc.replace_substring(genres, "|", " | ")
    return interactions, with_columns(items, {"title": title, "categories": genres, "year": year})
