"""How much a model can read at once."""

from torch import nn

from llmrec.decoding.head import unwrap
from llmrec.decoding.rotary import rope_kinds


def positions_of(model: nn.Module) -> int | None:
    """The most tokens of a prompt and its answer together; `None` where the config sets no limit.

    Rotary positions that are stretched (YaRN and the like) count as far as they are stretched.
    """
    config = unwrap(model).config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    stretched = [
        int(kind["original_max_position_embeddings"] * (kind.get("factor") or 1))
        for kind in rope_kinds(config)
        if kind.get("original_max_position_embeddings")
    ]
    return max([limit, *stretched]) if isinstance(limit, int) else None
