"""Model folders that are damaged at random, loaded in a process that may die of them.

    python tests/models/damaged_folders.py <model folder> <scratch folder> <seed> <how many> <with checksums: 0 or 1>

A folder is refused by a `ValueError` that names it, or loads; with its checksums it then gives the lists that it gave,
whatever was damaged but `llmrec_config.json`, which may be edited. The last line it prints is how often what came, as
JSON. The damaged folder lies in the scratch folder meanwhile.
"""

import json
import random
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path

from llmrec import LLMRecommender
from llmrec.models.folder import CHECKSUMS, CONFIG

HISTORIES = [["item-03", "item-04"], ["item-10"]]
VALUES = [
    None,
    True,
    0,
    -1,
    1,
    10**9,
    10**30,
    1.5,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    {},
    {"x": 1},
    "{code.__class__}",
    "../x",
]


def lists(recommender: LLMRecommender) -> list:
    return [[item.item_id for item in one] for one in recommender.recommend(HISTORIES, k=5)]


def places(value, at=()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for name, each in [*inner][:50] for place in places(each, (*at, name)))]


def damage(file: Path, chance: random.Random) -> str:
    content = file.read_bytes()
    how = chance.choice(["flip", "cut", "zeros", "lost", *(["value"] * 6 if file.suffix == ".json" else ["flip"])])
    if how == "lost":
        file.unlink()
    elif how == "value":
        whole = json.loads(content)
        *path, last = chance.choice([place for place in places(whole) if place])
        inner = whole
        for name in path:
            inner = inner[name]
        inner[last] = chance.choice(VALUES)
        file.write_text(json.dumps(whole))
    else:
        at = chance.randrange(len(content))
        if how == "flip":
            changed = bytes([content[at] ^ 1 << chance.randrange(8)])
            content = content[:at] + changed + content[at + 1 :]
        content = content[:at] if how == "cut" else content
        content = content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :] if how == "zeros" else content
        file.write_bytes(content)
    return how


def main(folder: str, scratch: str, seed: str, number: str, checked: str) -> None:
    warnings.simplefilter("ignore")
    chance, came, copy = random.Random(int(seed)), Counter(), Path(scratch) / "damaged"
    names = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    expected = lists(LLMRecommender.from_pretrained(folder))
    for _ in range(int(number)):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        name = chance.choice(names)
        how = damage(copy / name, chance)
        if checked == "0":
            (copy / CHECKSUMS).unlink(missing_ok=True)
        try:
            recommender = LLMRecommender.from_pretrained(copy)
        except ValueError as error:
            assert name.name in str(error) or str(copy) in str(error), f"{name} ({how}): {error}"
            came["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"{name} ({how})") from error
        if checked == "1" and name.name != CONFIG:
            assert lists(recommender) == expected, f"{name} ({how}): other lists"
        came["loaded"] += 1
    sys.stdout.write(f"\n{json.dumps(came)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
