"""`Recommender`: the one Protocol behind which our model and every baseline stand, and `LLMRecommender`, our model."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.catalogue.filters import Filter, within_limits
from llmrec.recommenders.protocol import Recommendation, per_request

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.catalogue.semids import SemIDIndex
    from llmrec.decoding import ScoredItem, SemIDTrie
    from llmrec.instructions import Prompt, Texts
    from llmrec.item_tokenizers import SequenceTokenizer
    from llmrec.models.folder import RecommenderConfig


class LLMRecommender:
    """A language model that speaks Semantic IDs, searched with the catalogue's trie.

    Where an item has several views of Semantic IDs, the view of the prompt is searched, or all views in
    `config.fuse`, each with its own prompt; `llmrec.decoding.fusion` makes one list of theirs. Where the index has
    behaviours, histories may hold (item id, behaviour) pairs, and the wanted behaviour ends the prompt. Where the
    prompt is thinking, `config.thoughts` rationales are written first, and items are searched after each of them
    (`llmrec.decoding.thoughts`).

    Example:
        >>> recommender = LLMRecommender.from_pretrained("out/industrial/model")
        >>> for item in recommender.recommend([["B0002YTLFE", "B000BQKBCK"]], k=3)[0]:
        ...     print(f"{item.score:.2f}  {item.title}")

    Args:
        model, tokenizer: from transformers; the tokenizer has the SemID tokens.
        index (`SemIDIndex`): the catalogue's Semantic IDs.
        items (`pa.Table`): one row per row of `index`, with `item_id`, `title` and the columns that filters may name.
        config (`RecommenderConfig`): prompt, lengths, beams.
        batch_size (`int`): histories that are searched together.
        sequence_tokenizer (`SequenceTokenizer`, *optional*): the one that made `index`, if it is contextual.
        seed (`int`): of several thoughts, which are sampled; the same request gets the same ones.
        texts (`Texts`, *optional*): what training rows quote that are rendered with this recommender's `renderer`.

    Raises:
        ValueError: a thinking prompt whose completion is not a rationale in a block and then the target.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        index: "SemIDIndex",
        items: "pa.Table",
        config: "RecommenderConfig",
        batch_size: int = 32,
        sequence_tokenizer: "SequenceTokenizer | None" = None,
        seed: int = 0,
        texts: "Texts | None" = None,
    ):
        from llmrec.decoding.searchable import SearchableCatalogue
        from llmrec.decoding.thoughts import ThoughtBlock
        from llmrec.instructions import Catalogue, Prompt, Renderer

        self.model, self.tokenizer, self.index, self.config = model, tokenizer, index, config
        self.batch_size, self.seed = batch_size, seed
        self.prompt = Prompt.from_dict(config.prompt)
        self.block = ThoughtBlock.of(self.prompt.templates[0].completion) if self.prompt.thinking else None
        self.renderer = Renderer(tokenizer, Catalogue(index, items, sequence_tokenizer, texts))
        views = config.fuse or ([self.prompt.semids] if self.prompt.semids else [])
        self.catalogue = SearchableCatalogue(index, items, tokenizer, views)
        self.filter, self.views = self.catalogue.filter, self.catalogue.views

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_kwargs) -> "LLMRecommender":
        """Loads a model folder or downloads one from the Hub; `model_kwargs` (dtype, device_map) go to transformers.

        Raises:
            ValueError: no llmrec model folder, or Semantic IDs that the model was not trained with.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llmrec.models.folder import CONFIG, RecommenderConfig, load_parts

        if not Path(folder).is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = snapshot_download(str(folder))
            except Exception as error:
                raise ValueError(f"{folder} is neither a folder nor a reachable Hub model with {CONFIG}") from error
        config = RecommenderConfig.load(folder)
        index, items, contextual = load_parts(folder, config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, **model_kwargs).eval()
        return cls(model, tokenizer, index, items, config, sequence_tokenizer=contextual)

    @property
    def trie(self) -> "SemIDTrie":
        """The Semantic IDs of the catalogue."""
        return self.catalogue.trie

    @property
    def item_ids(self) -> list[str]:
        """The catalogue."""
        return self.index.items

    @property
    def behaviours(self) -> list[str]:
        """The kinds of interaction that the model knows."""
        return self.index.behaviours

    def prompts(
        self, histories: Sequence[Sequence], view: str = "", behaviour: str | Sequence[str] | None = None
    ) -> list[str]:
        """The exact text that the model reads for each history; of several views `view`, or the first searched.

        A thought follows after it, or stands before the behaviour that ends it.
        """
        view = view or next(iter(self.views))
        prompt = dataclasses.replace(self.prompt, semids=view) if view else self.prompt
        wanted = behaviour or self.config.behaviour or None
        if wanted is not None and not self.behaviours:
            raise ValueError(f"behaviour is {wanted!r}, but the model knows no behaviours")
        wanted = None if wanted is None else per_request(wanted, len(histories), "behaviour")
        return self.renderer.next_item_prompts(prompt, histories, self.config.max_history, wanted)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        behaviour: str | Sequence[str] | None = None,
        think: bool = True,
        num_beams: int | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is the log-probability of the item's Semantic ID.

        Args:
            behaviour: the wanted one, for all or one per history; by default `config.behaviour`.
            think: `False` puts an empty thought where the prompt asks for one, which costs no generation.
            num_beams: instead of `config.num_beams`.
        """
        from llmrec.decoding.fusion import fuse

        num_beams = num_beams or self.config.num_beams
        ks = per_request(k, len(histories), "k")
        if any(number < 1 for number in ks):
            raise ValueError(f"k is {min(ks)}, it should be at least 1")
        requests = per_request(filters, len(histories), "filters")
        if not len(histories):  # a tokenizer of transformers fails on an empty list
            return []
        if len(self.views) == 1:
            ((view, _),) = self.views.items()
            found = self._search(view, histories, ks, requests, behaviour, think, num_beams)
        else:  # what the beams hold anyway, so that few items count with the floor of a list
            wanted = [max(number, num_beams) for number in ks]
            rest = requests, behaviour, think, num_beams
            lists = [self._search(view, histories, wanted, *rest) for view in self.views]
            found = [
                self._within(request, fuse(of_views))[:number]
                for number, request, *of_views in zip(ks, requests, *lists)
            ]
        return self._recommendations(found)

    def ask(
        self,
        prompt: "str | Prompt",
        rows: Sequence[dict],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        num_beams: int | None = None,
    ) -> list[list[Recommendation]]:
        """The items that answer the prompt of any task: a search, a wish, a title (docs/tasks.md).

        Example:
            >>> recommender.ask("like_but", [{"about": "B0002YTLFE", "wish": "cheaper & other_brand"}], k=5)

        Args:
            prompt: the name of a shipped prompt, a YAML file, or a `Prompt`, of a task that the model was trained on.
            rows: what each speaks of: `history` (item ids; none by default), `about`, `wish`, ...; a search says its
                `query` instead, a history of a model with `behaviours` has these beside it.

        Raises:
            ValueError: a row without a column that its task needs, or one answered in words or after a thought.
        """
        from llmrec.instructions import TASKS, Prompt, load_prompt
        from llmrec.recommenders.ask import prompt_texts

        prompt = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
        if not TASKS[prompt.task].ends_with_item:
            raise ValueError(f"task {prompt.task!r} is answered in words: use tell")
        if prompt.thinking:
            raise ValueError(f"task {prompt.task!r} thinks before it answers: train with it as recommend_prompt")
        histories = [row.get("history", []) for row in rows]
        ks, requests = per_request(k, len(rows), "k"), per_request(filters, len(rows), "filters")
        texts = prompt_texts(self, prompt, rows)
        return self.after(texts, ks, requests, histories, num_beams) if rows else []

    def after(
        self,
        prompts: Sequence[str],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        histories: Sequence[Sequence] | None = None,
        num_beams: int | None = None,
    ) -> list[list[Recommendation]]:
        """The items that follow any texts, such as rendered chats; `histories` are what `exclude_seen` looks at."""
        ks, requests = per_request(k, len(prompts), "k"), per_request(filters, len(prompts), "filters")
        found = self.search(self._ids(list(prompts)), ks, histories, requests, num_beams=num_beams)
        return self._recommendations(_pairs(found))

    def tell(self, prompt: "str | Prompt", rows: Sequence[dict], max_new_tokens: int = 128) -> list[str]:
        """The greedy answers in words to the prompt of any task, such as `explain`; see `ask`."""
        from llmrec.recommenders.ask import answered_words, prompt_texts

        return answered_words(self, prompt_texts(self, prompt, rows), max_new_tokens) if rows else []

    def _recommendations(self, found: list[list[tuple[int, float]]]) -> list[list[Recommendation]]:
        titles, items = self.renderer.catalogue.titles, self.index.items
        return [[Recommendation(items[i], score, titles[items[i]]) for i, score in hits] for hits in found]

    def _search(
        self,
        view: str,
        histories: Sequence[Sequence],
        ks: list[int],
        requests: list[Filter | None],
        behaviour: str | Sequence[str] | None,
        think: bool,
        num_beams: int,
    ) -> list[list[tuple[int, float]]]:
        """(number of the item, score) pairs for every history, from the Semantic IDs of one view."""
        from llmrec.decoding.thoughts import after_thoughts

        prompts = self._ids(self.prompts(histories, view, behaviour))
        if self.block is None:
            return _pairs(self.search(prompts, ks, histories, requests, view, num_beams))
        thoughts = self._thoughts(prompts) if think and self.config.thoughts else [[""] for _ in prompts]
        number = len(thoughts[0])
        blocks = self._ids([self.block.text(thought) for of_one in thoughts for thought in of_one])
        # Lists as long as the beams are, so that few items are missing from the list of a thought.
        wanted = [k if number == 1 else max(k, num_beams) for k in ks]
        asked, histories, wanted, each = (
            [value for value in values for _ in range(number)] for values in (prompts, histories, wanted, requests)
        )
        end = -1 if self.behaviours else None  # a behaviour's token stands after the thought
        asked = [[*ids[:end], *block, *(ids[end:] if end else ())] for ids, block in zip(asked, blocks)]
        found = _pairs(self.search(asked, wanted, histories, each, view, num_beams))
        return [
            self._within(request, after_thoughts(found[i * number : (i + 1) * number]))[:k]
            for i, (k, request) in enumerate(zip(ks, requests))
        ]

    def _within(self, request: Filter | None, found: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """What the limits of a filter leave of a list that was made of several."""
        limits = self.filter.limits(request)
        if not limits:
            return found
        rows = [self.index.row(self.index.items[item]) for item, _ in found]
        return [found[place] for place in within_limits(rows, limits)]

    def think(self, histories: Sequence[Sequence], behaviour: str | Sequence[str] | None = None) -> list[list[str]]:
        """The rationales that `recommend` writes for each history, `config.thoughts` of them.

        Raises:
            ValueError: the prompt of this model is not a thinking one.
        """
        if self.block is None:
            raise ValueError(f"the prompt of task {self.prompt.task!r} has no thoughts: train with think_next_item")
        return self._thoughts(self._ids(self.prompts(histories, behaviour=behaviour))) if len(histories) else []

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _thoughts(self, prompts: list[list[int]]) -> list[list[str]]:
        from llmrec.decoding.thoughts import write_thoughts

        config = self.config
        written = write_thoughts(
            self.write,
            self.tokenizer,
            [ids[:-1] for ids in prompts] if self.behaviours else prompts,
            self.block,
            config.thoughts,
            config.max_thought_tokens,
            config.thought_temperature,
            self.seed,
        )
        return [[thought.text for thought in of_one] for of_one in written]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        stop: str | None = None,
    ) -> Iterator[str]:
        """What the model writes after any prompts (token ids); see `llmrec.decoding.free_text.continue_text`."""
        from llmrec.decoding.free_text import continue_text

        rest = max_new_tokens, temperature, seeds, stop, self.batch_size
        return continue_text(self.model, self.tokenizer, prompts, *rest)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        ks: Sequence[int],
        histories: Sequence[Sequence] | None = None,
        requests: Sequence[Filter | None] | None = None,
        view: str = "",
        num_beams: int | None = None,
    ) -> list[list["ScoredItem"]]:
        """The best items after any prompts (token ids), by the constrained beam search.

        Args:
            ks: how many, one number per prompt.
            histories, requests (*optional*): what filters look at, and the filters, one per prompt.
            view: the Semantic IDs that are searched; by default the first of this recommender's.
            num_beams (*optional*): instead of `config.num_beams`.
        """
        from llmrec.decoding.prompt_search import search_prompts
        from llmrec.instructions.render import item_of

        return search_prompts(
            self.model,
            prompts,
            self.catalogue,
            ks,
            num_beams or self.config.num_beams,
            requests if requests is not None else [None] * len(prompts),
            [[*map(item_of, history)] for history in histories or [[]] * len(prompts)],
            view,
            self.config.normalize,
            batch_size=self.batch_size,
        )


def _pairs(found: list[list["ScoredItem"]]) -> list[list[tuple[int, float]]]:
    return [[(hit.item, hit.score) for hit in hits] for hits in found]
