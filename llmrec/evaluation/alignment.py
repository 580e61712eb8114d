"""The alignment report: how well a model's words and Semantic IDs mean the same, and whether it does what it is told.

Recall of the next item does not show whether a language model understood its new words. LC-Rec (arXiv 2311.09049)
looks at index ⇔ text and at recall over paraphrases; here a wish or an explanation is a statement about the columns of
the items, so what an answer is worth is a fact, too. docs/alignment.md says what each figure means.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from llmrec.arguments import at_least, one_of
from llmrec.devices import best_dtype
from llmrec.evaluation import alignment_sections as of
from llmrec.evaluation.alignment_sections import LeftOut, Sample
from llmrec.evaluation.language import perplexity, read_general_text
from llmrec.files import fingerprint
from llmrec.instructions import TASKS, Prompt, load_prompt
from llmrec.instructions.tasks import check_prompt
from llmrec.instructions.wishes import phrases
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.loading import files_of

logger = logging.getLogger(__name__)


class Section(NamedTuple):
    """A task and what is measured of it; without a task the folder's own prompt is asked."""

    task: str | None
    score: Callable[[LLMRecommender, Prompt, Sample], dict]


SECTIONS = {
    "title_to_item": Section("title_to_item", of.title_to_item),
    "item_to_title": Section("item_to_title", of.item_to_title),
    "description_to_item": Section("description_to_item", of.asked_to_item),
    "search": Section("query_to_item", of.asked_to_item),
    "steering": Section("like_but", of.steering),
    "explanation": Section("explain", of.explanation),
    "robustness": Section(None, of.robustness),
}
GENERAL_TEXT = "general_text"


def alignment_prompts(paths: Mapping[str, str]) -> dict[str, Prompt]:
    """The prompt of every section that asks a task: the shipped one, or another file of that task. Raises
    `ValueError`: an unknown section, or a prompt of another task (for `robustness`: that needs more than a
    history)."""
    for name in sorted(paths):
        one_of(name, SECTIONS, "alignment_prompts: section")
    prompts = {}
    for name, section in SECTIONS.items():
        if name in paths or section.task is not None:
            prompts[name] = prompt = check_prompt(load_prompt(paths.get(name, section.task)))
            recommends = TASKS[prompt.task].recommends
            if not (prompt.task == section.task if section.task else recommends):
                asked = f"task {section.task!r}" if section.task else "for an item after a history"
                raise ValueError(f"alignment_prompts: section {name!r} asks {asked}, not task {prompt.task!r}")
    return prompts


@dataclass
class AlignmentArguments:
    """The part of recipes/evaluate.py's YAML that is about alignment."""

    alignment: list[str] = field(default_factory=list, metadata={"help": "Names of the language models to report on."})
    alignment_rows: int = field(default=200, metadata={"help": "Rows of every section, and of every kind of wish."})
    alignment_prompts: dict = field(
        default_factory=dict, metadata={"help": "Section -> prompt (a YAML file), where it is not the shipped one."}
    )
    search_encoder: str = field(
        default="auto", metadata={"help": "Of the search by content beside ours: auto, tfidf or a text encoder."}
    )
    search_cache: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})
    general_text: str | None = field(default=None, metadata={"help": "A text file, for the perplexity."})
    general_text_base: str | None = field(
        default=None, metadata={"help": "The model that training started from, to see what was forgotten."}
    )

    def __post_init__(self):
        at_least(self, alignment_rows=1)


class Aligner:
    """Writes the report of one model after the other; prompts and text are read once (see `AlignmentArguments`).
    Raises `ValueError`: see `alignment_prompts`; or a text file that cannot be read."""

    def __init__(
        self,
        prompts: Mapping[str, str] | None = None,
        general_text: str | Path | None = None,
        general_text_base: str | Path | None = None,
    ):
        self.prompts = alignment_prompts(prompts or {})
        self.text, self.base = "" if general_text is None else read_general_text(general_text), general_text_base

    @property
    def fingerprint(self) -> str:
        return fingerprint(str(self.prompts), str(phrases()), self.text, files_of(self.base) if self.base else "")

    def __call__(self, recommender: LLMRecommender, sample: Sample) -> dict:
        """All sections of one model: `{"sections": {name: {"rows", "figures", "ci", ...}}, "left_out": {name: why}}`.
        Raises `ValueError`: no language model."""
        if not isinstance(recommender, LLMRecommender):
            raise ValueError(f"alignment names a {type(recommender).__name__}: only a language model can be asked")
        sections, left_out = {}, {}
        for name, section in SECTIONS.items():
            try:
                sections[name] = section.score(recommender, self.prompts.get(name, recommender.prompt), sample)
                logger.info("alignment: %s: %d rows", name, sections[name].get("all", sections[name])["rows"])
            except LeftOut as reason:
                left_out[name] = str(reason)
        if not self.text:
            return {"sections": sections, "left_out": left_out | {GENERAL_TEXT: "no text was given"}}
        after = perplexity(recommender.model, recommender.tokenizer, self.text, sample.rows)
        figures = {"perplexity": after["perplexity"]}
        if self.base is not None:
            before = _base_perplexity(str(self.base), str(recommender.model.device), self.text, sample.rows)
            figures["perplexity before"] = before["perplexity"]
        sections[GENERAL_TEXT] = {"rows": after["tokens"], "figures": figures, "ci": {}}
        return {"sections": sections, "left_out": left_out}


@lru_cache(maxsize=1)
def _base_perplexity(folder: str, device: str, text: str, blocks: int) -> dict[str, float]:
    dtype = best_dtype(None, torch.device(device))
    model = load_model(folder, dtype=dtype).to(device)
    return perplexity(model, load_tokenizer(folder), text, blocks)
