"""What a prepared data set looks like, in numbers."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import flatten_lists, ids_to_rows, lists_to_rows, numbered

logger = logging.getLogger(__name__)
_LARGE_SHARE, _TIMES_MEDIAN, _NAMED = 0.05, 20, 3


def name_heavy_users(users: np.ndarray, user_ids: pa.Array) -> None:
    """Logs who has a twentieth of all interactions and 20 times as many as half of the users: hardly one person."""
    counts = np.bincount(users, minlength=1)
    heavy = (counts >= _LARGE_SHARE * len(users)) & (counts >= _TIMES_MEDIAN * np.median(counts))
    for user in sorted(np.flatnonzero(heavy), key=lambda user: -counts[user])[:_NAMED]:
        logger.warning(
            "user %r has %.1f %% of all interactions (%d of %d): a shared account or a robot? Leave it out of the "
            "file, or set max_user_interactions to keep only a user's last ones",
            user_ids[int(user)].as_py(), 100 * counts[user] / len(users), counts[user], len(users),
        )  # fmt: skip


def statistics(data: PreparedData) -> dict[str, float | int]:
    """Counts of prepared data.

    An item that a user's further training sequences repeat as context counts once, so `interactions` are those known
    as targets, plus the first context of each user. "cold" is the share of targets that no training sequence holds,
    "text" the share of items whose text is not empty, "length" the interactions of a user.
    """
    counts = Counts(data.items)
    counts.add(data)
    return counts.result()


class Counts:
    """`statistics` of data that come in parts, in each of which all of its users' rows stand."""

    def __init__(self, items: pa.Table):
        self.items = items
        self.events = [np.zeros(0)]  # of every user, a vector a part
        self.trained = np.zeros(items.num_rows, bool)
        self.totals = dict.fromkeys(("train_users", "train_sequences", "train_interactions", "train_targets"), 0)
        self.rows = dict.fromkeys(("valid", "test"), 0)
        self.histories = dict.fromkeys(self.rows, 0)
        self.targets = {name: np.zeros(items.num_rows, np.int64) for name in self.rows}  # of every item

    def add(self, data: PreparedData) -> None:
        tables = (data.train, data.valid, data.test)
        (train_users, *eval_users), names = numbered(*(table["user_id"] for table in tables))
        num_users, catalogue = len(names), self.items["item_id"]
        rows, offsets = lists_to_rows(data.train["item_ids"], catalogue)
        context = np.minimum(data.train["num_context"].to_numpy(), np.diff(offsets))
        targets = np.diff(offsets) - context
        first = np.unique(train_users, return_index=True)[1]
        events = np.bincount(train_users, weights=targets, minlength=num_users)
        events[train_users[first]] += context[first]
        found = len(first), data.train.num_rows, int(events.sum()), int(targets.sum())
        self.totals = {name: count + more for (name, count), more in zip(self.totals.items(), found)}
        for eval_rows in eval_users:
            events += np.bincount(eval_rows, minlength=num_users)
        self.events.append(events)
        self.trained[rows] = True
        for name in self.rows:
            table = getattr(data, name)
            self.rows[name] += table.num_rows
            self.histories[name] += int(flatten_lists(table["history"])[1][-1])
            self.targets[name] += np.bincount(ids_to_rows(table["target"], catalogue), minlength=len(self.trained))

    def result(self) -> dict[str, float | int]:
        events, num_items = np.concatenate(self.events), len(self.trained)
        num_users, total = len(events), int(events.sum())
        result = {
            "users": num_users,
            "items": num_items,
            "interactions": total,
            "density": total / max(1, num_users * num_items),
            "length_min": int(events.min()) if num_users else 0,
            "length_mean": total / max(1, num_users),
            "length_median": float(np.median(events)) if num_users else 0.0,
            "length_max": int(events.max(initial=0)),
            **self.totals,
            "items_in_train": int(self.trained.sum()),
        }
        for name, count in self.rows.items():
            result[name] = count
            if count:
                result[f"{name}_history_mean"] = self.histories[name] / count
                result[f"{name}_cold"] = 1 - int(self.targets[name][self.trained].sum()) / count
        for column in ("title", "description", "brand", "categories"):
            if column in self.items.column_names and num_items:
                filled = pc.sum(pc.greater(pc.utf8_length(self.items[column]), 0)).as_py() or 0
                result[f"text_{column}"] = filled / num_items
        return result


def statistics_table(numbers: dict[str, float | int]) -> str:
    """The statistics as aligned lines of text."""
    lines = []
    for name, value in numbers.items():
        if name.startswith("text_") or name.endswith("_cold"):
            shown = f"{value:.2%}"
        elif name == "density":
            shown = f"{value:.4%}"
        else:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        lines.append(f"{name.replace('_', ' '):<24}{shown:>14}")
    return "\n".join(lines)
