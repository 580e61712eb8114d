"""`VLLMRecommender`: `LLMRecommender` with vLLM's engines in the place of the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import ScoredItem
from llmrec.instructions.render import item_of
from llmrec.models.folder import RecommenderConfig, load_parts
from llmrec.recommenders import LLMRecommender
from llmrec.serving.vllm.beam_pooler import SearchRequest
from llmrec.serving.vllm.engines import GENERATE, RECOMMEND, Engine, OfflineEngine


class VLLMRecommender(LLMRecommender):
    """Recommends through vLLM; prompts, filters, views, behaviours and thoughts are those of `LLMRecommender`.

    Example:
        >>> recommender = VLLMRecommender.from_pretrained("out/industrial/model")
        >>> recommender.recommend([["B0002YTLFE", "B000BQKBCK"]], k=3)

    Args:
        engine: of mode `recommend`, with the same catalogue version.
        writer (*optional*): of mode `generate`; without it thoughts are empty and `generate_text` is refused.
        version (`int`): the catalogue version of `index` and `items`.
        rest: see `LLMRecommender`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer,
        index: SemIDIndex,
        items: pa.Table,
        config: RecommenderConfig,
        writer: Engine | None = None,
        version: int | None = None,
        sequence_tokenizer=None,
    ):
        super().__init__(None, tokenizer, index, items, config, sequence_tokenizer=sequence_tokenizer)
        self.engine, self.writer, self.version = engine, writer, version

    @classmethod
    def from_pretrained(cls, folder: str | Path, modes: Sequence[str] = (RECOMMEND,), **more) -> "VLLMRecommender":
        """Starts vLLM in this process for a model folder.

        Args:
            modes: `recommend`, and `generate` too for thoughts and `generate_text`.
            more: vLLM's own arguments, such as `dtype`.
        """
        from transformers import AutoTokenizer

        config = RecommenderConfig.load(folder)
        index, items, contextual = load_parts(folder, config)
        engine = OfflineEngine(folder, RECOMMEND, **more)
        writer = OfflineEngine(folder, GENERATE, **more) if GENERATE in modes else None
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(engine, tokenizer, index, items, config, writer, sequence_tokenizer=contextual)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        ks: Sequence[int],
        histories: Sequence[Sequence] | None = None,
        requests: Sequence[Filter | None] | None = None,
        view: str = "",
        num_beams: int | None = None,
    ) -> list[list[ScoredItem]]:
        """See `LLMRecommender.search`.

        Raises:
            ValueError: a filter that does not fit the catalogue.
            RuntimeError: a search that failed in the engine, whose log says why.
        """
        asked = []
        for number, k in enumerate(ks):
            one = requests[number] if requests is not None else None
            history = [*map(item_of, histories[number])] if histories is not None and one and one.exclude_seen else ()
            self.filter.check(one)  # what does not fit is refused here
            fields = None if one is None else {name: getattr(one, name) for name in Filter.__dataclass_fields__}
            beams = num_beams or self.config.num_beams
            asked.append(SearchRequest(k, beams, self.version, view, fields, tuple(history)))
        found = []
        for output in self.engine.search(prompts, asked):
            (status, *_), *hits = output.tolist()
            if status:
                raise RuntimeError("the search failed: the log of the engine says why")
            found.append([ScoredItem(int(item), score, int(row)) for item, score, row in hits])
        return found

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        stop: str | None = None,
    ) -> Iterator[str]:
        """See `LLMRecommender.write`; sampled text differs from what transformers samples from the same seed."""
        from vllm import SamplingParams

        if self.writer is None:
            raise ValueError("words need mode generate: start with --modes recommend,generate")
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seeds[number] if seeds else None,
                stop=stop,
                include_stop_str_in_output=True,
                extra_args={"semid_version": self.version} if self.version is not None else None,
            )
            for number in range(len(prompts))
        ]
        yield from self.writer.write(prompts, params)

    def _thoughts(self, prompts: list[list[int]]) -> list[list[str]]:
        return super()._thoughts(prompts) if self.writer is not None else [[""] for _ in prompts]
