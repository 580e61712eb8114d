"""A tuned language model some of the way back to its base, so that it recommends as the one and talks as the other.

WiSE-FT (Wortsman et al., arXiv 2109.01903): on the straight line between the weights before and after fine-tuning much
of what was learned is kept, and much of what was forgotten comes back. It costs no training.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from llmrec.models.card import add_to_card
from llmrec.models.folder import DENSE, RecommenderConfig, load_parts, write_sidecars
from llmrec.models.update import copied_folder
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.tokens import words_without


@torch.no_grad()
def average_with_base(folder: str | Path, base: str | Path, share: float, output_dir: str | Path) -> None:
    """Writes a copy of a model folder whose weights are `base + share * (tuned - base)`; the rows of Semantic IDs, of
    which a base knows nothing, stay as they were tuned. A dense head does not come along: it was fitted on others.

    Args:
        base: the language model that training started from: a folder, extended or not, or a model of the Hub.
        share: 0 < share < 1.
        output_dir: must not exist yet.

    Raises:
        ValueError: a share out of range, or a base that cannot be loaded, has other words or weights of other shapes.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: {share} should lie between 0 (the base) and 1 (the model as it is)")
    folder, config = Path(folder), replace(RecommenderConfig.load(folder), dense="")
    index, items, _ = load_parts(folder, config)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype="auto")
    try:
        old, words = load_model(base, dtype=model.dtype), load_tokenizer(base)
    except ValueError as error:
        raise ValueError(f"base: {error}") from error
    new = {*index.tokens}
    if words_without(words, new) != words_without(tokenizer, new):
        raise ValueError(f"base {base} has other tokens than {folder}: name the model that this one was made from")
    before, tuned = dict(old.named_parameters()), dict(model.named_parameters())
    if before.keys() != tuned.keys():
        raise ValueError(f"base {base} has other weights than {folder}: name the model that this one was made from")
    known = torch.ones(len(tokenizer), dtype=torch.bool)
    known[tokenizer.convert_tokens_to_ids(index.tokens)] = False
    rows = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    for name, weight in tuned.items():
        earlier = before[name]
        if any(weight is one for one in rows):
            both = known[: len(earlier)].nonzero()[:, 0]
            weight[both] = earlier[both].lerp(weight[both], share)
        elif weight.shape != earlier.shape:
            raise ValueError(f"base {base}: {name} is {[*earlier.shape]}, in {folder} it is {[*weight.shape]}")
        else:
            weight.copy_(earlier.lerp(weight, share))
    with copied_folder(folder, output_dir) as temporary:
        shutil.rmtree(temporary / DENSE, ignore_errors=True)
        for old_weights in temporary.glob("*.safetensors*"):
            old_weights.unlink()
        model.save_pretrained(temporary)
        write_sidecars(temporary, config, index, items)
        text = f"{share:g} of the way from {base} (WiSE-FT, arXiv 2109.01903)."
        add_to_card(temporary, f"\n## Averaged with its base\n\n{text}\n")
