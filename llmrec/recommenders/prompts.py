"""`PromptWriter`: the exact texts that a model folder's model reads, for the next item and for any task."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from llmrec.arguments import one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import SemIDTrie
from llmrec.decoding.dense import MODES
from llmrec.decoding.searchable import SearchableCatalogue
from llmrec.decoding.thoughts import ThoughtBlock
from llmrec.instructions import TASKS, Catalogue, Prompt, Renderer, Template, Texts, load_prompt
from llmrec.instructions.tasks import check_prompt
from llmrec.item_tokenizers import SequenceTokenizer
from llmrec.models.folder import CONFIG, RecommenderConfig
from llmrec.recommenders.protocol import item_histories, item_id_of, per_request


class PromptWriter:
    """What a model folder knows beside the model; see `LLMRecommender` for the arguments."""

    seed: int = 0
    has_dense: bool = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        index: SemIDIndex,
        items: pa.Table,
        config: RecommenderConfig,
        sequence_tokenizer: SequenceTokenizer | None = None,
        texts: Texts | None = None,
    ):
        self.tokenizer, self.index, self.config = tokenizer, index, config
        self.prompt = check_prompt(Prompt.from_dict(config.prompt, f"{CONFIG}: prompt"))
        self.renderer = Renderer(tokenizer, Catalogue(index, items, sequence_tokenizer, texts), config.bos)
        views = config.fuse or ([self.prompt.semids] if self.prompt.semids else [])
        self.catalogue = SearchableCatalogue(index, items, tokenizer, views)
        self.filter, self.views = self.catalogue.filter, self.catalogue.views
        self.block = ThoughtBlock.of(self.prompt.templates[0].completion) if self.prompt.thinking else None

    @property
    def trie(self) -> SemIDTrie:
        return self.catalogue.trie

    @property
    def item_ids(self) -> list[str]:
        return self.index.items

    @property
    def behaviours(self) -> list[str]:
        return self.index.behaviours

    def ways(self, variations: int | None = None) -> list[tuple[str, int | None]]:
        """How a history is asked: (view, seed of the item tokenizer) pairs; lists of several are fused.

        `variations` stands instead of `config.variations`; `ValueError` where it is below 0, or above where the item
        tokenizer writes a history in one way. The seeds follow from this recommender's.
        """
        number = self.config.variations if variations is None else variations
        if number < 0 or (number and not self.index.contextual):
            least = "at least 0" if self.index.contextual else "0: its item tokenizer writes a history in one way"
            raise ValueError(f"variations is {number}, for this model it should be {least}")
        seeds = range(self.seed * number, (self.seed + 1) * number) if number else [None]
        return [(view, seed) for view in self.views for seed in seeds]

    def dense_mode(self, dense: str | None = None) -> str:
        """What is done with dense scores, by default what `config` says; raises `ValueError` where it cannot be."""
        dense = one_of(self.config.dense if dense is None else dense, ("", *MODES), "dense")
        if dense and not self.has_dense:
            raise ValueError(f"dense is {dense!r}, but this model has no dense head: run recipes/fit_dense.py")
        if dense and self.block is not None:
            raise ValueError(f"dense is {dense!r}, but this model thinks before it answers: leave it out")
        return dense

    def prompts(
        self, histories: Sequence[Sequence], view: str = "", behaviour: str | Sequence[str] | None = None
    ) -> list[str]:
        """The exact text that the model reads for each history; of several `ways` the first, of several views in
        `view`.

        A thought follows after it, or stands before the behaviour that ends it.
        """
        first, variation = self.ways()[0]
        return self._prompts(histories, view or first, variation, behaviour)

    def _prompts(
        self,
        histories: Sequence[Sequence],
        view: str,
        variation: int | None,
        behaviour: str | Sequence[str] | None,
    ) -> list[str]:
        wanted = behaviour or self.config.behaviour or None
        if wanted is not None and not self.behaviours:
            raise ValueError(f"behaviour is {wanted!r}, but the model knows no behaviours")
        wanted = None if wanted is None else per_request(wanted, len(histories), "behaviour")
        prompt = self._in_view(self.prompt, view)
        shown = item_histories(histories, bool(self.behaviours))
        return self.renderer.next_item_prompts(prompt, shown, self.config.max_history, wanted, variation)

    def task_prompts(
        self, prompt: str | Prompt, rows: Sequence[dict], templates: Sequence[Template] = ()
    ) -> list[str]:
        """The prompt of any task for every row, with the newest items of its history; of several `ways` the first.

        Args:
            prompt: a `Prompt`, or the name of a shipped one, or a YAML file.
            rows: what the task speaks of: `history` (item ids; none by default), `about`, `wish`, ...; a search may
                say `query` or `intention` in the user's words instead of the item that it is `about`. Where the model
                knows kinds of interaction, a history comes with its `behaviours`, and `behaviour` is the wanted one.
            templates: row i takes the wording i modulo their number; by default all take the first.

        Raises:
            ValueError: a row without a column that the task needs, or a history without its kinds of interaction.
        """
        prompt = self._in_view(load_prompt(prompt))
        wordings, texts, variation = templates or prompt.templates[:1], [], self.ways()[0][1]
        for number, row in enumerate(rows):
            [history] = item_histories([() if row.get("history") is None else row["history"]])
            row = {"targets": [], "variation": variation, **row, "history": history}
            if row.get("about") is not None:
                row["about"] = item_id_of(row["about"], "about")
            self._check(prompt, row)
            for name in row.keys() & {"history", "behaviours"}:  # no longer than training showed them
                row[name] = list(row[name])[-self.config.max_history :]
            text = self.renderer.prompt(prompt, row, wordings[number % len(wordings)])
            texts.append(text + self._wanted(prompt, row))
        return texts

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of whole prompts, such as `prompts` and `task_prompts` write."""
        return self.renderer.token_ids(texts)

    def block_ids(self, thoughts: Sequence[str]) -> list[list[int]]:
        """The tokens of thoughts in their block, between a prompt and the item."""
        blocks = [self.block.text(self.renderer.plain(thought)) for thought in thoughts]
        return self.tokenizer(blocks, add_special_tokens=False)["input_ids"]

    @property
    def thought_length(self) -> int:
        """Tokens of the longest thought in its block."""
        return len(self.block_ids([""])[0]) + (self.config.max_thought_tokens if self.config.thoughts else 0)

    def _in_view(self, prompt: Prompt, view: str = "") -> Prompt:
        view = view or next(iter(self.views))
        return dataclasses.replace(prompt, semids=view) if view else prompt

    def _check(self, prompt: Prompt, row: dict) -> None:
        needed = TASKS[prompt.task].given
        typed = {"about"} if row.get("query") or row.get("intention") else set()
        if missing := [name for name in needed if row.get(name) is None and name not in typed]:
            raise ValueError(f"a row of task {prompt.task!r} needs {' and '.join(needed)}: {missing[0]!r} is missing")
        if self.behaviours and len(row.get("behaviours") or ()) != len(row.get("history") or ()):
            raise ValueError(
                f"this model knows kinds of interaction ({', '.join(self.behaviours)}): a row with a history "
                "needs `behaviours`, one for each of its items"
            )

    def _wanted(self, prompt: Prompt, row: dict) -> str:
        """The token of the wanted kind of interaction, where the task's answers write one before the Semantic ID."""
        task = TASKS[prompt.task]
        if not (self.behaviours and (row["history"] or task.recommends) and task.ends_with_item):
            return ""
        wished = row.get("wish") if row.get("wish") in self.behaviours else None
        kind = row.get("behaviour") or wished or self.config.behaviour or self.behaviours[-1]
        token = self.index.behaviour_token(kind)
        row = row | {"targets": self.index.items[:1], "target_behaviours": [kind]}
        return token if token in self.renderer.completion(prompt, row) else ""
