"""The model card: what a folder is, what made it, how well it ranks, and three lines to use it.

It is written from the folder alone (`Provenance`, `RecommenderConfig`, the Semantic IDs), so every stage writes it
anew, and a push with the repository's name and, where the model was evaluated, the figures of that report.
"""

import shutil
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, EvalResult, ModelCard, ModelCardData

from llmrec.arguments import one_of
from llmrec.files import atomic_path, read_json
from llmrec.hub import name_no_places, upload
from llmrec.models.folder import CARD, CHECKSUMS, ITEM_TOKENIZER, RecommenderConfig, load_index, write_checksums
from llmrec.models.provenance import FILE as PROVENANCE
from llmrec.models.provenance import Provenance

MARK = "<!-- Written by llmrec. Without this line the text is yours: then its header alone follows the model. -->"
_TRAINED = ("sft", "grpo", "dpo")
_METRICS = ("recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10")
_TEXT = """---
{header}
---

{mark}

# {name}

A recommender for the catalogue **{data}** ({items:,} items), made with llmrec{of}. Items are Semantic IDs
(`{example}`), {tokens} the language model; decoding is constrained to the catalogue.

```python
from llmrec import LLMRecommender

recommender = LLMRecommender.from_pretrained("{repository}")
recommender.recommend([[{history}]], k=10)
```
{sections}
Data fingerprint `{fingerprint}`, Semantic IDs `{semids}`; the folder refuses others.
"""


def write_card(folder: str | Path, repo_id: str = "", report: dict | None = None) -> None:
    """Writes `README.md` into a model folder. Of one that llmrec did not write, or whose `MARK` was removed, only the
    header is brought up to date.

    Args:
        repo_id: on the Hub, for the example; by default the folder's name.
        report: of `read_report`.
    """
    folder = Path(folder)
    config, provenance = RecommenderConfig.load(folder), Provenance.load(folder)
    name = repo_id.rpartition("/")[2] or folder.resolve().name
    header = _header(name, config, provenance, report)
    path = folder / CARD
    if path.exists() and MARK not in (before := path.read_text(encoding="utf-8")):
        card = ModelCard(before, ignore_metadata_errors=True)
        merged = card.data.to_dict() | header.to_dict()
        card.data = ModelCardData(**merged, ignore_metadata_errors=True)
        text = str(card)
    else:
        text = _text(folder, config, provenance, header, repo_id or name, report)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_report(folder: str | Path, name: str, config: RecommenderConfig) -> dict:
    """What recipes/evaluate.py found of one recommender: its entry in metrics.json, with the report's `facts`. Raises
    `ValueError`: no report, another name, or one about other data than the model was made with."""
    summary = read_json(path := Path(folder) / "metrics.json")
    found = summary["recommenders"][one_of(name, summary["recommenders"], f"{path}: recommender")]
    theirs, ours = summary["facts"].get("data fingerprint"), config.trained_on.get("fingerprint")
    if theirs != ours:
        raise ValueError(f"{path} is about other data ({theirs}) than the model was trained on ({ours})")
    return found | {"facts": summary["facts"]}


def model_files(files: Path, repo_id: str, source: str | Path, report: dict | None = None) -> None:
    """Of the files of a model folder, `source`, that are links: those that name places on this machine are replaced,
    and the card is written."""
    name_no_places((files / ITEM_TOKENIZER).rglob("config.json"))
    if not (files / PROVENANCE).exists():
        Provenance.load(source).save(files)  # of an older version
    if (noted := files / CHECKSUMS).exists():
        noted.unlink()
        write_checksums(files)
    if (own := Path(source) / CARD).exists():
        shutil.copyfile(own, files / CARD)
    write_card(files, repo_id, report)


def share_model(folder: str | Path, repo_id: str, **where) -> CommitInfo:
    """Uploads a model folder; `where` is of `llmrec.hub.upload`."""
    return upload([folder], repo_id, partial(model_files, source=folder), **where)


def _header(name, config, provenance, report) -> ModelCardData:
    stages = [stage["stage"] for stage in provenance.stages]
    last = provenance.stages[-1] if provenance.stages else {}
    trained = [stage for stage in stages if stage in _TRAINED]
    lora = ["lora"] if any("lora" in stage for stage in provenance.stages) else []
    data = str(config.trained_on.get("name") or "unknown")
    about = {"task_type": "recommendation", "dataset_type": (provenance.datasets or [data])[-1]}
    results = [
        EvalResult(**about, dataset_name=data, dataset_split=split, metric_type=metric, metric_value=round(value, 5))
        for split, figures in (("validation", last.get("validation", {})), *_of_report(report))
        for metric, value in figures.items()
    ]
    relation = "merge" if "average" in stages else "finetune"
    return ModelCardData(
        base_model=provenance.base_model or None,
        base_model_relation=relation if provenance.base_model else None,
        **provenance.license,
        datasets=provenance.datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[
            "llmrec",
            "semantic-id",
            "recommendation",
            *(["trl"] if trained else []),
            *dict.fromkeys(trained),
            *lora,
        ],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _of_report(report: dict | None) -> list[tuple[str, dict]]:
    if report is None:
        return []
    split = {"valid": "validation"}.get(named := report["facts"]["split"].partition(",")[0], named)
    return [(split, {name: report["metrics"][name] for name in _METRICS if name in report["metrics"]})]


def _text(folder, config, provenance, header, repository, report) -> str:
    index = load_index(folder, config)
    example = index.items[:2]
    base, last = provenance.base_model, provenance.stages[-1] if provenance.stages else {}
    sections = []
    for split, figures in _of_report(report):
        rows = [
            f"| {name} | {value:.4f} | {', '.join(f'{one:.4f}' for one in report['ci'].get(name, ()))} |"
            for name, value in figures.items()
        ]
        seen = "left out" if report["exclude_seen"] else "kept"
        note = f"{report['rows']:,} rows of {split}, the whole catalogue ranked, items of the history {seen}."
        sections.append(
            ("Evaluation", "\n".join(["| metric | value | 95 % interval |", "|---|---:|---|", *rows, "", note]))
        )
    if last.get("validation"):
        figures = [f"- {name}: {value:.4f}" for name, value in last["validation"].items()]
        note = "Measured on a sample of the validation split at item level, ranking the whole catalogue."
        sections.append(("Validation metrics", "\n".join([*figures, "", note])))
    made = "\n".join(f"{number}. {_said(stage)}" for number, stage in enumerate(provenance.stages, 1))
    if (config_json := folder / "config.json").exists():
        dtype = read_json(config_json).get("dtype") or read_json(config_json).get("torch_dtype")
        made += f"\n\nThe weights are {dtype}." if dtype else ""
    sections.append(("How it was made", made.strip()))
    if settings := last.get("settings"):
        rows = [f"| `{name}` | `{value}` |" for name, value in settings.items()]
        sections.append(("Settings of the last stage", "\n".join(["| setting | value |", "|---|---|", *rows])))
    return _TEXT.format(
        header=header.to_yaml(),
        mark=MARK,
        name=repository.rpartition("/")[2],
        repository=repository,
        data=config.trained_on.get("name") or "unknown",
        of=f" of [{base}](https://huggingface.co/{base})" if base else "",
        items=len(index.items),
        tokens=f"{len(index.tokens):,} new tokens of" if index.adds_tokens else "in words of",
        example=index.encode(example[0]),
        history=", ".join(f'"{item}"' for item in example),
        sections="".join(f"\n## {title}\n\n{text}\n" for title, text in sections if text),
        fingerprint=config.trained_on.get("fingerprint", ""),
        semids=config.semid_fingerprint,
    )


def _said(stage: dict) -> str:
    """`**sft**: tasks stream, title_to_item; lora r 16`."""
    left_out = ("stage", "settings", "validation")
    facts = [f"{name} {_words(value)}" for name, value in stage.items() if name not in left_out]
    return f"**{stage['stage']}**" + (f": {'; '.join(facts)}" if facts else "")


def _words(value) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "yes" if value is True else str(value)
