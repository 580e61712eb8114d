"""`Recommender`: the one Protocol behind which our model and every baseline stand, and `LLMRecommender`, our model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmrec.filters import CatalogueFilter, Filter

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.model_folder import RecommenderConfig
    from llmrec.semids import SemIDIndex


class Recommendation(NamedTuple):
    """One recommended item; scores are comparable within one request only."""

    item_id: str
    score: float
    title: str = ""


class Recommender(Protocol):
    """Anything that ranks a catalogue for histories."""

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """The best items for each history.

        Args:
            histories: item ids, oldest first; an empty history is allowed.
            k: how many items, one number for all or one per history.
            filters: what may be recommended, one for all or one per history.

        Returns:
            For each history at most k distinct items, best first; fewer only where fewer are allowed.

        Raises:
            ValueError: an unknown item in a history, k < 1, or a filter that does not fit the catalogue.
        """
        ...


def per_request(value, count: int, name: str) -> list:
    """Spreads one value over `count` requests, or checks that there is one for each."""
    if value is None or isinstance(value, (int, Filter)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {name} for {count} histories")
    return list(value)


class LLMRecommender:
    """A language model that speaks Semantic IDs, searched with the catalogue's trie.

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
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        index: "SemIDIndex",
        items: "pa.Table",
        config: "RecommenderConfig",
        batch_size: int = 32,
    ):
        import torch

        from llmrec.decoding import SemIDTrie
        from llmrec.instructions import Catalogue, Prompt, Renderer

        self.model, self.tokenizer, self.index, self.config = model, tokenizer, index, config
        self.batch_size = batch_size
        self.prompt = Prompt.from_dict(config.prompt)
        self.renderer = Renderer(tokenizer, Catalogue(index, items))
        self.trie = SemIDTrie.from_index(index, tokenizer)
        self.filter = CatalogueFilter(items)
        position = {item: number for number, item in enumerate(index.items)}
        self.item_of_row = torch.tensor([position[item] for item in index.item_ids])

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_kwargs) -> "LLMRecommender":
        """Loads a model folder or downloads one from the Hub; `model_kwargs` (dtype, device_map) go to transformers.

        Raises:
            ValueError: no llmrec model folder, or Semantic IDs that the model was not trained with.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llmrec.model_folder import CONFIG, RecommenderConfig, load_index, semids_table

        if not Path(folder).is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = snapshot_download(str(folder))
            except Exception as error:
                raise ValueError(f"{folder} is neither a folder nor a reachable Hub model with {CONFIG}") from error
        config = RecommenderConfig.load(folder)
        index = load_index(folder, config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, **model_kwargs).eval()
        return cls(model, tokenizer, index, semids_table(folder), config)

    @property
    def item_ids(self) -> list[str]:
        """The catalogue."""
        return self.index.items

    def prompts(self, histories: Sequence[Sequence[str]]) -> list[str]:
        """The exact text that the model reads for each history."""
        return self.renderer.next_item_prompts(self.prompt, histories, self.config.max_history)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is the log-probability of the item's Semantic ID."""
        import torch

        from llmrec.decoding import search_items

        ks = per_request(k, len(histories), "k")
        if any(number < 1 for number in ks):
            raise ValueError(f"k is {min(ks)}, it should be at least 1")
        requests = per_request(filters, len(histories), "filters")
        prompts = self.tokenizer(self.prompts(histories), add_special_tokens=False)["input_ids"]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        device = next(self.model.parameters()).device
        self.trie.to(device)
        results: list[list[Recommendation]] = [[] for _ in histories]
        titles, items = self.renderer.catalogue.titles, self.index.items
        # Neighbours in length share a batch, so little is padded.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            width = max(len(prompts[i]) for i in batch)
            rows = [prompts[i] + [pad] * (width - len(prompts[i])) for i in batch]
            lengths = torch.tensor([len(prompts[i]) for i in batch], device=device)
            input_ids = torch.tensor(rows, device=device)
            mask = (torch.arange(width, device=device) < lengths[:, None]).long()
            filtered = any(requests[i] is not None for i in batch)
            masks, denied = zip(*(self.filter(requests[i], histories[i]) for i in batch))
            found = search_items(
                self.model,
                input_ids,
                mask,
                self.trie,
                self.item_of_row,
                [ks[i] for i in batch],
                self.config.num_beams,
                masks=list(masks) if filtered else None,
                denied=list(denied) if filtered else None,
                normalize=self.config.normalize,
            )
            for i, hits in zip(batch, found):
                results[i] = [Recommendation(items[hit[0]], hit[1], titles[items[hit[0]]]) for hit in hits]
        return results
