"""`VLLMRecommender`: `LLMRecommender` with vLLM's engines in the place of the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from llmrec.decoding import ScoredItem
from llmrec.instructions.render import item_of
from llmrec.item_tokenizers import SequenceTokenizer
from llmrec.models.folder import DENSE, RecommenderConfig, load_parts
from llmrec.models.weights import load_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.serving.vllm.engines import GENERATE, RECOMMEND, OfflineEngine, OnlineEngine, SearchRequest


class VLLMRecommender(LLMRecommender):
    """Recommends through vLLM; prompts, filters, views, behaviours and thoughts are those of `LLMRecommender`.

    Example:
        >>> recommender = VLLMRecommender.from_pretrained("out/industrial/model")
        >>> recommender.recommend([["B0002YTLFE", "B000BQKBCK"]], k=3)

    Args:
        engine: of mode `recommend`, with the same catalogue version.
        writer (*optional*): of mode `generate`; without it thoughts are empty and `generate_text` is refused.
        version: the catalogue version of `index` and `items`.
        has_dense: whether the engine's folder has a dense head.
        rest: `tokenizer`, `index`, `items` and `config`; see `LLMRecommender`.
    """

    def __init__(
        self,
        engine: OfflineEngine | OnlineEngine,
        *rest,
        writer: OfflineEngine | OnlineEngine | None = None,
        version: int | None = None,
        sequence_tokenizer: SequenceTokenizer | None = None,
        has_dense: bool = False,
    ):
        super().__init__(None, *rest, sequence_tokenizer=sequence_tokenizer)
        self.has_dense = has_dense
        self.engine, self.writer, self.version = engine, writer, version

    @classmethod
    def from_pretrained(cls, folder: str | Path, modes: Sequence[str] = (RECOMMEND,), **more) -> "VLLMRecommender":
        """Starts vLLM in this process for a model folder.

        Args:
            modes: `recommend`, and `generate` too for thoughts and `generate_text`.
            more: vLLM's own arguments, such as `dtype`.
        """
        config = RecommenderConfig.load(folder)
        index, items, contextual = load_parts(folder, config)
        engine = OfflineEngine(folder, RECOMMEND, **more)
        writer = OfflineEngine(folder, GENERATE, **more) if GENERATE in modes else None
        tokenizer = load_tokenizer(folder)
        more = {"writer": writer, "sequence_tokenizer": contextual, "has_dense": (Path(folder) / DENSE).is_dir()}
        return cls(engine, tokenizer, index, items, config, **more)

    @property
    def device(self) -> NoReturn:
        """Refused: the engines have the model."""
        raise ValueError("vLLM's engines hold the model: tell from_pretrained where it runs; its folder is there")

    def to(self, *args, **kwargs) -> NoReturn:
        """Refused, as `device` is."""
        return self.device

    def save_pretrained(self, folder: str | Path) -> NoReturn:
        """Refused, as `device` is."""
        return self.device

    def search(
        self, prompts, ks, histories=None, requests=None, view="", num_beams=None, dense=""
    ) -> list[list[ScoredItem]]:
        """See `LLMRecommender.search`.

        Raises:
            ValueError: a filter that does not fit the catalogue.
            RuntimeError: a search that failed in the engine, whose log says why.
        """
        asked = []
        filters = requests if requests is not None else [None] * len(ks)
        for k, one, history in zip(ks, filters, histories if histories is not None else [()] * len(ks)):
            self.filter.check(one)  # what does not fit is refused here
            seen = [*map(item_of, history)] if one and one.exclude_seen else ()
            asked.append(SearchRequest(k, self._beams(num_beams), self.version, view, one, seen, dense))
        lists = []
        for output in self.engine.search(prompts, asked):
            (status, *_), *hits = output.tolist()
            if status:
                raise RuntimeError("the search failed: the log of the engine says why")
            lists.append([ScoredItem(int(item), score, int(row)) for item, score, row in hits])
        return lists

    def write(self, prompts, max_new_tokens, temperature=0.0, seeds=(), stop=None, semid="inside") -> Iterator[str]:
        """See `LLMRecommender.write`; sampled text differs from what transformers samples from the same seed."""
        from vllm import SamplingParams

        if self.writer is None:
            raise ValueError("words need mode generate: start with --modes recommend,generate")
        asked = {"semid": semid} | ({} if self.version is None else {"semid_version": self.version})
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seeds[number] if seeds else None,
                stop=stop,
                include_stop_str_in_output=True,
                extra_args=asked,
            )
            for number in range(len(prompts))
        ]
        yield from self.writer.write(prompts, params)

    def _thoughts(self, prompts: list[list[int]]) -> list[list[str]]:
        return super()._thoughts(prompts) if self.writer is not None else [[""] for _ in prompts]
