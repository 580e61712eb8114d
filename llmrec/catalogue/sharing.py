"""Prepared data and Semantic IDs as one data set of the Hub, so that a benchmark is shared whole.

The repository holds what the folders hold: `PreparedData.load("owner/name")` and `semids: owner/name` read it, and so
does `datasets.load_dataset("owner/name", "items")`. Its card has the statistics and says how both were made.
"""

from pathlib import Path

from huggingface_hub import DatasetCardData

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import PreparedData
from llmrec.data.statistics import statistics_table
from llmrec.hub import name_no_places

_TEXT = """---
{header}
---

# {name}

{what}, made with llmrec.

```python
{example}
```
{sections}"""
_DATA = """
## Data

```
{statistics}
```

| file | a row is |
|---|---|
| `items.parquet` | an item: `item_id`, `title` and its other columns |
| `train.parquet` | a user's training sequence, in order of time |
| `valid.parquet`, `test.parquet` | a target and the history before it |

Rules: {rules}. Fingerprint `{fingerprint}`; a model trained on these tables says the same.
"""
_SEMIDS = """
## Semantic IDs

`semids.parquet` has {items:,} items by `{tokenizer}`, {tokens:,} tokens, such as `{example}`; `item_tokenizer/` gives
new items theirs. Fingerprint `{fingerprint}`.
"""


def dataset_files(files: Path, repo_id: str, license: str | None = None) -> None:
    """Of the files of prepared data, Semantic IDs or both that are links: those that name places on this machine are
    replaced, and the card is written. Raises `ValueError` where they are neither, or not of one catalogue."""
    data = PreparedData.load(files) if (files / "dataset.json").exists() else None
    index = SemIDIndex.load(files / "semids.parquet") if (files / "semids.parquet").exists() or data is None else None
    if data is not None and index is not None:
        index.aligned(data.items)  # refuses those of another catalogue
    name_no_places([*files.glob("dataset.json"), *(files / "item_tokenizer").rglob("config.json")])
    (files / "README.md").write_text(_card(repo_id, data, index, license), encoding="utf-8")


def _card(repo_id: str, data: PreparedData | None, index: SemIDIndex | None, license: str | None) -> str:
    what, example, sections, configs = [], [], [], []
    name = repo_id.rpartition("/")[2]
    if data is not None:
        what.append(f"A catalogue of {data.items.num_rows:,} items and the interactions of its users")
        example += ["from llmrec import PreparedData", "", f'data = PreparedData.load("{repo_id}")']
        rules = ", ".join(f"{rule} {value}" for rule, value in data.info.get("rules", {}).items() if value)
        facts = {"statistics": statistics_table(data.info.get("statistics", {})), "fingerprint": data.fingerprint}
        sections.append(_DATA.format(rules=rules, **facts))
        configs += [
            {"config_name": "items", "data_files": [{"split": "train", "path": "items.parquet"}]},
            {"config_name": "sequences", "data_files": [{"split": "train", "path": "train.parquet"}]},
            {"config_name": "targets", "data_files": [{"split": "validation", "path": "valid.parquet"},
                                                      {"split": "test", "path": "test.parquet"}]},
        ]  # fmt: skip
    if index is not None:
        what.append("Semantic IDs of its items" if what else f"Semantic IDs of {len(index.items):,} items")
        example += [f"# recipes/init_model.py: data_dir: {repo_id}, semids: {repo_id}" if data is not None else
                    f"# recipes/init_model.py: semids: {repo_id}"]  # fmt: skip
        facts = {"items": len(index.items), "tokens": len(index.tokens), "tokenizer": index.item_tokenizer}
        sections.append(_SEMIDS.format(example=index.encode(index.items[0]), fingerprint=index.fingerprint, **facts))
        configs.append({"config_name": "semids", "data_files": [{"split": "train", "path": "semids.parquet"}]})
    header = DatasetCardData(
        license=license,
        pretty_name=(data.info.get("name") if data is not None else None) or name,
        task_categories=["other"],
        size_categories=_size(data.items.num_rows if data is not None else len(index.items)),
        tags=["llmrec", "recommendation", *(["semantic-id"] if index is not None else [])],
        configs=configs,
    )
    parts = {"what": ", with ".join(what), "example": "\n".join(example), "sections": "".join(sections)}
    return _TEXT.format(header=header.to_yaml(), name=name, **parts)


def _size(rows: int) -> str:
    """As the Hub says it."""
    bounds = {1000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
    return next((text for bound, text in bounds.items() if rows < bound), "10M<n<100M")
