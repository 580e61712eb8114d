"""The model card: what the folder is, what it was trained on, how well it ranks, and three lines to use it."""

from dataclasses import asdict
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainingArguments

from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import atomic_path, read_json
from llmrec.models.folder import CARD, RecommenderConfig
from llmrec.stages import RECORD

_SHOWN = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps weight_decay "
    "lr_scheduler_type warmup_steps max_grad_norm bf16 seed"
).split()
_TEXT = """---
{header}
---

# {name}

A recommender for the catalogue **{data}** ({items:,} items), made with llmrec. Items are Semantic IDs
(`{example}`), {tokens:,} new tokens of the language model; decoding is constrained to the catalogue.

```python
from llmrec import LLMRecommender

recommender = LLMRecommender.from_pretrained("{name}")
recommender.recommend([[{history}]], k=10)
```

## Validation metrics

{metrics}

Measured on a sample of the validation split at item level, ranking the whole catalogue.

## Training

| setting | value |
|---|---|
{settings}

Data fingerprint `{fingerprint}`, Semantic IDs `{semids}`; the folder refuses others.
"""


def write_model_card(
    folder: str | Path,
    config: RecommenderConfig,
    index: SemIDIndex,
    metrics: dict[str, float],
    script_args,
    training_args: TrainingArguments,
    base_model: str,
) -> None:
    """Writes `README.md` into a model folder.

    Args:
        metrics: of validation, `{"ndcg@10": 0.08, ...}`; they enter the card's model index too.
        script_args: the recipe's dataclass; all its fields are shown.
        base_model: what the run started from; the card names the model of the Hub that this was made of, if any.
    """
    folder = Path(folder)
    settings = asdict(script_args) | {name: getattr(training_args, name) for name in _SHOWN}
    data = config.trained_on.get("name", "unknown")
    method = type(training_args).__name__.removesuffix("Config").lower()  # sft, grpo, dpo
    header = ModelCardData(
        base_model=_of_the_hub(base_model),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llmrec", "semantic-id", "recommendation", "trl", method],
        model_name=folder.name,
        eval_results=[
            EvalResult(
                task_type="recommendation",
                dataset_type=str(data),
                dataset_name=f"{data} (validation sample)",
                metric_type=name,
                metric_value=round(value, 5),
            )
            for name, value in metrics.items()
        ]
        or None,
    )
    example = index.items[:2]
    text = _TEXT.format(
        header=header.to_yaml(),
        name=folder.name,
        data=data,
        items=len(index.items),
        tokens=len(index.tokens),
        example=index.encode(example[0]),
        history=", ".join(f'"{item}"' for item in example),
        metrics="\n".join(f"- {name}: {value:.4f}" for name, value in metrics.items()) or "None were measured.",
        settings="\n".join(f"| `{key}` | `{value}` |" for key, value in settings.items()),
        fingerprint=config.trained_on.get("fingerprint", ""),
        semids=config.semid_fingerprint,
    )
    ModelCard(text, ignore_metadata_errors=True).save(folder / CARD)


def add_to_card(folder: Path, section: str) -> None:
    """Ends the card of a folder, if it has one, with a section of Markdown; through no link."""
    if (card := folder / CARD).exists():
        with atomic_path(card) as path:
            path.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")


def _of_the_hub(base_model: str) -> str | None:
    """The model that a chain of stages began with, `None` where it is none of the Hub."""
    seen = set()  # a run may have replaced its own base
    while base_model not in seen and (made := Path(base_model) / RECORD).is_file():
        seen.add(base_model)
        base_model = read_json(made)["settings"].get("model_name_or_path") or ""
    return base_model if base_model.count("/") == 1 and not Path(base_model).exists() else None
