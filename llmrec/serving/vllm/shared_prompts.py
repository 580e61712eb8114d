"""vLLM's own layers, run on many beams that share their prompts' keys and values.

vLLM runs the prompts as it always does; what is exchanged is the `forward` of its attention layers. While a prompt
runs they remember its keys and values; while beams run they attend with them, as `llmrec.decoding.tree_attention`
does, and the paged cache is neither read nor written. Everything else of the model (norms, rotary embedding,
projections, MLP) is called as it is, so no model family needs code of its own.

Checked with vLLM 0.32, where `Attention.forward(query, key, value, ...)` gets flat tokens, and keys after their rotary
embedding.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from llmrec.decoding.beam_search import Normalize, Search, search_levels
from llmrec.decoding.head import token_scores
from llmrec.decoding.tree_attention import Prompts, Tree, shared_prompt_attention
from llmrec.decoding.trie import RowFilter, SemIDTrie


class SharedPrompts:
    """Runs beams on a vLLM model right after it has run their prompts.

    Args:
        model: a decoder of vLLM with `model`, `lm_head` and `compute_logits`; one process, one pipeline stage.

    Raises:
        ValueError: attention that beams do not reproduce (a sliding window, capped logits, no keys of its own).
    """

    def __init__(self, model: torch.nn.Module):
        self._model = [model]  # a list, so that the model does not become a submodule of itself
        self._tree: Tree | None = None
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by layer: keys and values of the prompts
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        self._head_size = layers[0].head_size
        for number, layer in enumerate(layers):
            soft_cap = getattr(layer.impl, "logits_soft_cap", None)
            if layer.sliding_window is not None or soft_cap or layer.head_size != layer.head_size_v:
                raise ValueError(f"{type(model).__name__}: attention with a sliding window or a soft cap has no beams")
            layer.forward = partial(self._attend, number, layer, layer.forward)

    def _attend(self, number: int, layer: Attention, stock, query, key, value, *args, **kwargs):
        if self._tree is None:
            self._kept[number] = key, value
            return stock(query, key, value, *args, **kwargs)
        beams = self._beams
        query, key, value = (
            tensor.view(*beams, heads, layer.head_size).transpose(1, 2)
            for tensor, heads in ((query, layer.num_heads), (key, layer.num_kv_heads), (value, layer.num_kv_heads))
        )
        output = shared_prompt_attention(self._tree, number, query, key, value, layer.impl.scale)
        return output.reshape(beams[0] * beams[1], -1)

    def open_search(
        self,
        hidden: torch.Tensor,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        trie: SemIDTrie,
        normalize: Normalize,
        pause: Callable[[], None] = lambda: None,
    ) -> Search:
        """A search over N of the prompts that the model has just run.

        Args:
            hidden (float [T, H]): what the model returned for the flat tokens of all prompts.
            starts, lengths (int64 [N], on the CPU): where each prompt lies in them.
            trie: on the model's device.
            pause: called before the model runs beams.
        """
        width = int(lengths.max())
        offset = torch.arange(width)
        padding = offset >= lengths[:, None] if int(lengths.min()) < width else None
        place = (starts[:, None] + torch.minimum(offset, lengths[:, None] - 1)).to(hidden.device)

        def of_prompts(flat: torch.Tensor) -> torch.Tensor:
            """[T, K * D] -> [N, K, P, D]"""
            return flat.view(len(flat), -1, self._head_size)[place].transpose(1, 2).contiguous()

        keys, values = ([of_prompts(self._kept[layer][side]) for layer in range(len(self._kept))] for side in (0, 1))
        padding = None if padding is None else padding.to(hidden.device)
        prompts = Prompts(keys, values, padding, lengths.to(hidden.device))
        vocabulary = normalize == "vocabulary"
        first = self._scores(hidden[place[:, -1]][:, None], trie.head_ids[0], vocabulary)

        def search(requests: torch.Tensor | None, num_beams: int, allowed: RowFilter | None):
            chosen = slice(None) if requests is None else requests
            tree = Tree(prompts if requests is None else prompts.select(requests))
            scored = first[0][chosen], None if first[1] is None else first[1][chosen]

            def extend(tokens: torch.Tensor, parent: torch.Tensor, level: int):
                pause()
                return self._scores(self._run(tree, tokens, parent), trie.head_ids[level], vocabulary)

            return search_levels(trie, scored, extend, num_beams, allowed)

        return search

    def forget(self) -> None:
        self._kept.clear()

    def _run(self, tree: Tree, tokens: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
        """float [N, B, H]: the model after one more token of every beam."""
        tree.follow(parent)
        positions = (tree.prompts.lengths + tree.length)[:, None].expand_as(tokens)
        self._tree, self._beams = tree, tuple(tokens.shape)
        try:
            # vLLM's kernels read plain memory, an expanded view has none
            hidden = self._model[0].model(tokens.flatten(), positions.flatten().contiguous(), None, None)
        finally:
            self._tree = None
        tree.length += 1
        return hidden.view(*tokens.shape, -1)

    def _scores(self, hidden: torch.Tensor, ids: torch.Tensor, vocabulary: bool):
        """`llmrec.decoding.head.token_scores` with vLLM's head."""
        model, head = self._model[0], self._model[0].lm_head
        plain = type(head.quant_method) is UnquantizedEmbeddingMethod and getattr(head, "bias", None) is None
        if not vocabulary and plain and head.weight.dim() == 2 and model.logits_processor.soft_cap is None:
            # some rows of the head can be multiplied alone
            logits = torch.nn.functional.linear(hidden, head.weight[ids]).float()
            return logits * model.logits_processor.scale, None
        head = SimpleNamespace(forward=model.compute_logits, out_features=model.config.vocab_size)
        logits, log_z = token_scores(head, hidden, ids, vocabulary=True)  # in chunks, whatever is normalised over
        return logits, log_z if vocabulary else None
