"""Users of a prepared data folder: what they chose, and what they chose next."""

import random
from pathlib import Path

from llmrec.files import read_parquet

LISTED = 500  # rows of each table that the page offers; more choke a browser's list


class Users:
    """Rows of `test.parquet` and `valid.parquet` of a folder (`llmrec.data.prepared.TARGETS`), spread over each table.

    Raises `ValueError` for a folder without them, or a table without the columns.
    """

    def __init__(self, folder: str | Path):
        self.rows: list[dict] = []
        for split in ("test", "valid"):
            path = Path(folder) / f"{split}.parquet"
            if not path.exists():
                raise ValueError(
                    f"data {str(folder)!r} has no {path.name}: give a folder that recipes/prepare_data.py wrote"
                )
            table = read_parquet(path)
            if missing := {"user_id", "history", "target"} - set(table.column_names):
                raise ValueError(f"{path} has no column {sorted(missing)[0]!r}")
            rows = table.take(list(range(0, table.num_rows, 1 + table.num_rows // LISTED))).to_pylist()
            self.rows += [row | {"split": split} for row in rows]

    @property
    def names(self) -> list[tuple[str, int]]:
        """(what a list shows, number of the row)."""
        return [
            (f"{row['user_id']} · {len(row['history'])} items · {row['split']}", number)
            for number, row in enumerate(self.rows)
        ]

    def any_row(self) -> int:
        return random.randrange(len(self.rows))
