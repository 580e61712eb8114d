"""`LLMRecommender`: a language model that recommends, with everything in one folder."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pyarrow as pa
import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.arguments import whole_number
from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import ScoredItem
from llmrec.decoding.dense import ALONE, find_densely, prompt_states
from llmrec.decoding.free_text import continue_text
from llmrec.decoding.fusion import fuse
from llmrec.decoding.search import open_search, prompt_batches
from llmrec.decoding.thoughts import after_thoughts, write_thoughts
from llmrec.devices import best_device, best_dtype
from llmrec.files import atomic_path, check_whole
from llmrec.hub import local_folder
from llmrec.instructions import TASKS, Prompt, Texts, in_words, load_prompt
from llmrec.instructions.render import item_of
from llmrec.item_tokenizers import SequenceTokenizer
from llmrec.models.card import share_model
from llmrec.models.dense import DenseHead, load_dense
from llmrec.models.folder import CARD, DENSE, ITEM_TOKENIZER, RecommenderConfig, load_parts, write_sidecars
from llmrec.models.provenance import Provenance
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.recommenders.length import THOUGHT, check_length
from llmrec.recommenders.prompts import PromptWriter
from llmrec.recommenders.protocol import Recommendation, asked_for, item_histories, item_id_of, per_request


class LLMRecommender(PromptWriter):
    """A language model that speaks Semantic IDs, searched with the catalogue's trie.

    Of several views of Semantic IDs that of the prompt is searched, or all in `config.fuse`; of several ways to write
    a history `config.variations`. Each has its own prompt, and `llmrec.decoding.fusion` makes one list. Where the
    index has behaviours, histories may hold (item id, behaviour) pairs, and the wanted one ends the prompt. Where the
    prompt thinks, `config.thoughts` rationales are written first, and items are searched after each of them
    (`llmrec.decoding.thoughts`). Whatever the search keeps on a device follows the model, when it is next called.

    Example:
        >>> recommender = LLMRecommender.from_pretrained("out/industrial/model")
        >>> for item in recommender.recommend([["B0002YTLFE", "B000BQKBCK"]], k=3)[0]:
        ...     print(f"{item.score:.2f}  {item.title}")

    Args:
        model, tokenizer: from transformers; the tokenizer has the SemID tokens.
        items: one row per row of `index`, with `item_id`, `title` and the columns that filters may name.
        batch_size: histories that are searched together.
        sequence_tokenizer: the one that made `index`, if it is contextual.
        seed: of several thoughts, which are sampled, and of variations; the same request gets the same ones.
        texts: what training rows quote that are rendered with this recommender's `renderer`.
        dense: a head that was fitted on this model's states, for `config.dense`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        index: SemIDIndex,
        items: pa.Table,
        config: RecommenderConfig,
        batch_size: int = 32,
        sequence_tokenizer: SequenceTokenizer | None = None,
        seed: int = 0,
        texts: Texts | None = None,
        dense: DenseHead | None = None,
    ):
        super().__init__(tokenizer, index, items, config, sequence_tokenizer, texts)
        self.model, self.batch_size, self.seed = model, batch_size, seed
        self.dense, self.has_dense = dense, dense is not None
        self.folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **model_kwargs,
    ) -> Self:
        """Loads a model folder or downloads one from the Hub.

        Example:
            >>> recommender = LLMRecommender.from_pretrained("out/industrial/model")  # on the GPU where there is one
            >>> recommender = LLMRecommender.from_pretrained("me/industrial", dtype="bfloat16", revision="v2")
            >>> recommender = LLMRecommender.from_pretrained("me/industrial@v2")  # the same, where one text says it

        Args:
            device: by default the GPU where there is one; with `device_map`, or a quantised model, where transformers
                puts it.
            dtype: `"bfloat16"`, ...; `"auto"` is that of the folder, and the default but on a CPU, which is faster in
                float32.
            revision: branch, tag or commit on the Hub; model_kwargs: of transformers' `from_pretrained`.

        Raises:
            ValueError: no llmrec model folder, a revision of a local one, no such device or dtype, Semantic IDs that
                the model was not trained with, or a file of the folder that is damaged or does not fit, by its name
                (docs/security.md).
        """
        folder = local_folder(folder, revision, token)
        device = None if device is None else best_device(device)
        model_kwargs["dtype"] = best_dtype(dtype, device or best_device())
        config = RecommenderConfig.load(folder)
        check_whole(folder)
        index, items, contextual = load_parts(folder, config)
        model, tokenizer = load_model(folder, **model_kwargs), load_tokenizer(folder)
        placed = model_kwargs.get("device_map"), getattr(model, "quantization_method", None)
        if device is not None or placed == (None, None):
            model.to(device or best_device())
        dense = load_dense(folder, index.items)
        recommender = cls(model, tokenizer, index, items, config, sequence_tokenizer=contextual, dense=dense)
        recommender.folder = Path(folder)
        return recommender

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, *args, **kwargs) -> Self:
        """Moves or casts the model as `torch.nn.Module.to` does (a device, a dtype, or both)."""
        self.model.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a model folder that `from_pretrained` reads, whole or not at all.

        Beside weights, tokenizer, `semids.parquet` and `llmrec_config.json` it holds the item tokenizer and the model
        card of the folder that this recommender came from. Raises `ValueError` for a folder with files in it, or a
        model with an adapter (`merge_and_unload` it first).
        """
        there = Path(folder)
        if there.is_symlink() or there.is_file() or (there.is_dir() and any(there.iterdir())):
            raise ValueError(f"{folder} is a file or a link, or holds files already: save to a new folder")
        if not isinstance(self.model, PreTrainedModel):
            raise ValueError(f"{type(self.model).__name__} is no model of transformers alone: unwrap or merge it")
        catalogue, source = self.renderer.catalogue, self.folder
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            if self.dense is not None:
                self.dense.save_pretrained(temporary / DENSE)
            item_tokenizer = None if source is None else source / ITEM_TOKENIZER
            if self.index.contextual and not (item_tokenizer and item_tokenizer.is_dir()):
                catalogue.sequence_tokenizer.save_pretrained(temporary / ITEM_TOKENIZER)
            if source is not None:
                Provenance.load(source).save(temporary)
                if (source / CARD).is_file():
                    shutil.copy2(source / CARD, temporary / CARD)
            write_sidecars(temporary, self.config, self.index, catalogue.items, item_tokenizer)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload recommender",
    ) -> CommitInfo:
        """Uploads what `save_pretrained` writes, with a card; repository and branch are made where there are none.

        Example:
            >>> recommender.push_to_hub("me/industrial", private=True)
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            rest = {"revision": revision, "commit_message": commit_message}
            return share_model(folder, repo_id, private=private, token=token, **rest)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        behaviour: str | Sequence[str] | None = None,
        think: bool = True,
        num_beams: int | None = None,
        variations: int | None = None,
        dense: str | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is the log-probability of the item's Semantic ID, with `dense` that of
        the item (`llmrec.decoding.dense`).

        Args:
            behaviour: the wanted one, for all or one per history; by default `config.behaviour`.
            think: `False` puts an empty thought where the prompt asks for one, which costs no generation.
            num_beams, variations, dense: instead of those of `config`; `dense=""` leaves the dense head out.
        """
        dense = self.dense_mode(dense)
        histories, num_beams = item_histories(histories, bool(self.behaviours)), self._beams(num_beams)
        ks, requests = asked_for(k, filters, len(histories))
        if not len(histories):
            return []
        ways, rest = self.ways(variations), (requests, behaviour, think, num_beams, dense)
        if len(ways) == 1:
            lists = self._search(*ways[0], histories, ks, *rest)
        else:  # what the beams hold anyway, so that few items count with the floor of a list
            wanted = [max(number, num_beams) for number in ks]
            found = zip(ks, requests, *(self._search(*way, histories, wanted, *rest) for way in ways))
            within = self.catalogue.within_limits
            lists = [within(request, fuse(of_ways))[:number] for number, request, *of_ways in found]
        return self._recommendations(lists)

    def ask(
        self,
        prompt: str | Prompt,
        rows: Sequence[dict],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        num_beams: int | None = None,
    ) -> list[list[Recommendation]]:
        """The items that answer the prompt of any task: a search, a wish, a title (docs/tasks.md). The item that a
        wish compares with is never among them.

        Example:
            >>> recommender.ask("like_but", [{"about": "B0002YTLFE", "wish": "cheaper & other_brand"}], k=5)

        Args:
            prompt: the name of a shipped prompt, a YAML file, or a `Prompt`, of a task that the model was trained on.
            rows: what each speaks of: `history` (item ids; none by default), `about`, `wish`, ...; a search says its
                `query` instead, a history of a model with `behaviours` has these beside it.

        Raises:
            ValueError: a row without a column that its task needs, or one answered in words or after a thought.
        """
        prompt = load_prompt(prompt)
        if not TASKS[prompt.task].ends_with_item:
            raise ValueError(f"task {prompt.task!r} is answered in words: use generate_text")
        if prompt.thinking:
            raise ValueError(f"task {prompt.task!r} thinks before it answers: train with it as recommend_prompt")
        histories = item_histories([() if row.get("history") is None else row["history"] for row in rows])
        texts, requests = self.task_prompts(prompt, rows), per_request(filters, len(rows), "filters")
        about = [None if (one := row.get("about")) is None else item_id_of(one, "about") for row in rows]
        requests = [*map(TASKS[prompt.task].narrowed, requests, about)]
        return self.recommend_after(texts, k, requests, histories, num_beams) if rows else []

    def recommend_after(
        self,
        prompts: Sequence[str],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        histories: Sequence[Sequence] | None = None,
        num_beams: int | None = None,
    ) -> list[list[Recommendation]]:
        """The items that follow any texts, such as rendered chats; `histories` are what `exclude_seen` looks at."""
        ks, requests = asked_for(k, filters, len(prompts))
        if not len(prompts):
            return []
        histories = None if histories is None else item_histories(histories, bool(self.behaviours))
        hits = self.search(self.token_ids(prompts), ks, histories, requests, num_beams=num_beams)
        return self._recommendations(_pairs(hits))

    def generate_text(self, prompt: str | Prompt, rows: Sequence[dict], max_new_tokens: int = 128) -> list[str]:
        """The greedy answers in words to the prompt of any task, such as `explain`, up to EOS; see `ask`. They hold
        whole Semantic IDs of the catalogue, or where the task's answers are words alone, such as a title, none."""
        prompt = load_prompt(prompt)
        if TASKS[prompt.task].ends_with_item:
            raise ValueError(f"task {prompt.task!r} is answered with an item: use ask, or recommend for a history")
        if not rows:
            return []
        asked, semid = self.token_ids(self.task_prompts(prompt, rows)), "never" if in_words(prompt) else "inside"
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]))  # neighbours in length share a batch
        written = dict(zip(order, self.write([asked[i] for i in order], max_new_tokens, semid=semid)))
        return [written[number].strip() for number in range(len(asked))]

    def after(self, *args, **kwargs) -> list[list[Recommendation]]:
        warnings.warn("LLMRecommender.after is now recommend_after", FutureWarning, stacklevel=2)
        return self.recommend_after(*args, **kwargs)

    def tell(self, *args, **kwargs) -> list[str]:
        warnings.warn("LLMRecommender.tell is now generate_text", FutureWarning, stacklevel=2)
        return self.generate_text(*args, **kwargs)

    def _beams(self, num_beams: int | None) -> int:
        return whole_number(self.config.num_beams if num_beams is None else num_beams, "num_beams")

    def _recommendations(self, lists: list[list[tuple[int, float]]]) -> list[list[Recommendation]]:
        titles, items = self.renderer.catalogue.titles, self.index.items
        return [[Recommendation(items[i], score, titles[items[i]]) for i, score in pairs] for pairs in lists]

    def _search(
        self,
        view: str,
        variation: int | None,
        histories: Sequence[Sequence],
        ks: list[int],
        requests: list[Filter | None],
        behaviour: str | Sequence[str] | None,
        think: bool,
        num_beams: int,
        dense: str,
    ) -> list[list[tuple[int, float]]]:
        """(number of the item, score) pairs for every history, asked in one way."""
        prompts = self.token_ids(self._prompts(histories, view, variation, behaviour))
        if self.block is None:
            return _pairs(self.search(prompts, ks, histories, requests, view, num_beams, dense))
        thoughts = self._thoughts(prompts) if think and self.config.thoughts else [[""] for _ in prompts]
        number = len(thoughts[0])
        blocks = self.block_ids([thought for of_one in thoughts for thought in of_one])
        # Lists as long as the beams are, so that few items are missing from the list of a thought.
        wanted = [k if number == 1 else max(k, num_beams) for k in ks]
        asked, histories, wanted, each = (
            [value for value in values for _ in range(number)] for values in (prompts, histories, wanted, requests)
        )
        end = -1 if self.behaviours else None  # a behaviour's token stands after the thought
        asked = [[*ids[:end], *block, *(ids[end:] if end else ())] for ids, block in zip(asked, blocks)]
        lists = _pairs(self.search(asked, wanted, histories, each, view, num_beams))
        return [
            self.catalogue.within_limits(request, after_thoughts(lists[i * number : (i + 1) * number]))[:k]
            for i, (k, request) in enumerate(zip(ks, requests))
        ]

    def think(self, histories: Sequence[Sequence], behaviour: str | Sequence[str] | None = None) -> list[list[str]]:
        """The rationales that `recommend` writes for each history, `config.thoughts` of them; `ValueError` where the
        prompt of this model is not a thinking one."""
        if self.block is None:
            raise ValueError(f"the prompt of task {self.prompt.task!r} has no thoughts: train with think_next_item")
        return self._thoughts(self.token_ids(self.prompts(histories, behaviour=behaviour))) if len(histories) else []

    def _thoughts(self, prompts: list[list[int]]) -> list[list[str]]:
        config = self.config
        check_length(self, prompts, self.thought_length + self.trie.depth, THOUGHT)
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
        semid: str = "inside",
    ) -> Iterator[str]:
        """What the model writes after any prompts (token ids), with whole Semantic IDs of the catalogue or, `semid`
        being `"never"`, without; see `llmrec.decoding.free_text.continue_text`."""
        check_length(self, prompts, max_new_tokens, "words (max_new_tokens)")
        tokens = self.catalogue.tokens.to(self.device) if self.index.adds_tokens else None
        rest = max_new_tokens, temperature, seeds, stop, self.batch_size, tokens, semid
        return continue_text(self.model, self.tokenizer, prompts, *rest)

    @torch.no_grad()
    def search(
        self,
        prompts: Sequence[Sequence[int]],
        ks: Sequence[int],
        histories: Sequence[Sequence] | None = None,
        requests: Sequence[Filter | None] | None = None,
        view: str = "",
        num_beams: int | None = None,
        dense: str = "",
    ) -> list[list[ScoredItem]]:
        """The best items after any prompts (token ids), by the constrained beam search on the model's device.

        `histories` are what the filters, `requests`, look at; `view` is by default the first of this recommender's;
        `dense` is one of `llmrec.decoding.dense.MODES`, for prompts like those that the head was fitted on.
        """
        device, num_beams = self.device, self._beams(num_beams)
        check_length(self, prompts)
        trie = self.catalogue.trie.to(device)
        results: dict[int, list[ScoredItem]] = {}
        for batch, ids, mask in prompt_batches(prompts, self.batch_size, device):
            asked = [requests[i] if requests is not None else None for i in batch]
            seen = [[*map(item_of, histories[i])] if histories is not None else [] for i in batch]
            within = self.catalogue.restrictions(asked, seen, view)
            opened = self.model, ids, mask, trie, self.config.normalize, self.folder
            search = None if dense == ALONE else open_search(*opened)
            wanted = [ks[i] for i in batch], [num_beams] * len(batch), within
            states = prompt_states(self.model, ids, mask, search) if dense else None
            results |= zip(batch, find_densely(dense, self.dense, states, self.catalogue, search, *wanted))
        return [results[number] for number in range(len(prompts))]


def _pairs(lists: list[list[ScoredItem]]) -> list[list[tuple[int, float]]]:
    return [[(hit.item, hit.score) for hit in hits] for hits in lists]
