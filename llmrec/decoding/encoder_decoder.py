"""Models with an encoder (T5): a prompt is encoded once, its beams are extra positions of one row of the decoder.

To the tree (`llmrec.decoding.tree_attention`) the decoder's prompt is its start token; what the encoder made of the
history lies in the keys and values of the cross-attention, one copy for all beams. Relative positions are those that
the model itself gives a row: all beams of a level stand where its newest token would (checked with 5.19).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from llmrec.decoding.head import head_replaced, unwrap
from llmrec.decoding.tree_attention import Prompts, Tree, prompt_lengths, shared_prompt_attention


@dataclass
class Encoded(Prompts):
    """N encoded prompts of at most P tokens; `keys` and `values` are the decoder's, of its start token.

    Attributes:
        states (float [N, P, H]): what the encoder made of them.
        mask (bool [N, P]): False where a column holds no token.
        crossed: by layer, keys and values of the states, [N, K, P, D] each.
    """

    states: torch.Tensor
    mask: torch.Tensor
    crossed: DynamicCache

    def select(self, requests: torch.Tensor) -> "Encoded":
        own = super().select(requests)
        crossed = DynamicCache([(layer.keys[requests], layer.values[requests]) for layer in self.crossed.layers])
        return Encoded(*vars(own).values(), self.states[requests], self.mask[requests], crossed)


def start_token(model: torch.nn.Module) -> int | None:
    """What a decoder reads first; `None` for models without an encoder."""
    inner = unwrap(model)
    if not inner.config.is_encoder_decoder:
        return None
    told = inner.generation_config.decoder_start_token_id, getattr(inner.config, "decoder_start_token_id", None)
    start = next((token for token in told if token is not None), None)
    if start is None:
        raise ValueError(f"{type(inner).__name__}: its config has no decoder_start_token_id")
    return start


def beam_attention(
    module, query, key, value, attention_mask, scaling=None, position_bias=None, tree: Tree | None = None, **kwargs
):
    """An attention function of transformers, in a decoder: query [N, H, B, D] of the newest token of every beam."""
    if tree is None:
        raise ValueError("the model does not hand keyword arguments on to its attention function")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key is tree.prompts.crossed.layers[module.layer_idx].keys:
        seen = tree.prompts.mask[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, seen, scale=scaling).transpose(1, 2), None
    place = 1 + tree.length  # of the newest token, after the start token and the beam's own
    bias = None if position_bias is None else position_bias[0, :, place, : place + 1]
    return shared_prompt_attention(tree, module.layer_idx, query, key, value, scaling, bias), None


AttentionInterface.register("llmrec_beams", beam_attention)


def encode(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, at_head: Callable
) -> tuple[Encoded, object]:
    """Encodes every prompt once and starts the decoder; arguments and results are those of `prefill`."""
    prompt_lengths(attention_mask)  # refuses an empty one
    attention_mask = attention_mask.to(input_ids.device, non_blocking=True)
    start = torch.full_like(input_ids[:, :1], start_token(model))
    with head_replaced(model, at_head) as results:
        output = model(
            input_ids=input_ids, attention_mask=attention_mask.long(), decoder_input_ids=start, use_cache=True
        )
    own, crossed = output.past_key_values.self_attention_cache, output.past_key_values.cross_attention_cache
    keys, values = ([getattr(layer, side) for layer in own.layers] for side in ("keys", "values"))
    decoder = keys, values, None, torch.ones_like(start[:, 0])
    return Encoded(*decoder, output.encoder_last_hidden_state, attention_mask.bool(), crossed), results[0]


def extend_encoded(model: torch.nn.Module, tree: Tree, tokens: torch.Tensor, parent: torch.Tensor, at_head: Callable):
    """Adds one token to every beam; arguments and results are those of `extend`."""
    prompts, beams = tree.prompts, tokens.shape[1]
    # The row must be long enough for the model to give its newest place a relative position.
    missing = max(0, tree.length + 2 - beams)
    tokens, parent = F.pad(tokens, (0, missing)), F.pad(parent, (0, missing))
    tree.follow(parent)
    config = unwrap(model).get_decoder().config
    before, config._attn_implementation = config._attn_implementation, "llmrec_beams"
    try:
        with head_replaced(model, lambda head, hidden: at_head(head, hidden[:, :beams])) as results:
            model(
                encoder_outputs=(prompts.states,),
                attention_mask=prompts.mask.long(),
                decoder_input_ids=tokens,
                past_key_values=EncoderDecoderCache(DynamicCache(), prompts.crossed),
                use_cache=True,
                tree=tree,
            )
    finally:
        config._attn_implementation = before
    tree.length += 1
    return results[0]
