"""Between a tuned model and its base: words on a straight line, Semantic IDs as they were tuned."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_data, tiny_index, write_tiny_base
from transformers import AutoModelForCausalLM

from llmrec import LLMRecommender
from llmrec.files import write_json
from llmrec.models.averaging import average_with_base
from llmrec.models.folder import CONFIG
from recipes import average_with_base as recipe

INDEX = tiny_index(tiny_data())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tuned model and its base, which has no rows for Semantic IDs."""
    root = tmp_path_factory.mktemp("averaging")
    tuned = write_tiny_base(root / "tuned", tiny_data(), INDEX)
    recommender = LLMRecommender.from_pretrained(tuned)
    ids = recommender.tokenizer.convert_tokens_to_ids(INDEX.tokens)
    base = AutoModelForCausalLM.from_pretrained(tuned)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    base.resize_token_embeddings(min(ids))
    base.save_pretrained(root / "base")
    recommender.tokenizer.save_pretrained(root / "base")
    write_json(tuned / CONFIG, asdict(replace(recommender.config, dense="rank")))  # which does not come along
    return tuned, root / "base", ids


def test_weights_lie_between_and_semantic_ids_stay(folders, tmp_path):
    tuned, base, ids = folders
    average_with_base(tuned, base, 0.25, tmp_path / "made")
    before, after, made = (load_file(folder / "model.safetensors") for folder in (base, tuned, tmp_path / "made"))
    assert made.keys() == after.keys()
    for name, weight in made.items():
        wanted = after[name].clone()
        size = len(before[name])
        wanted[:size] = before[name] + 0.25 * (after[name][:size] - before[name])
        assert torch.allclose(weight, wanted, atol=1e-6)
        assert size == len(wanted) or torch.equal(weight[ids], after[name][ids])
    history = [["item-01", "item-02"]]
    assert LLMRecommender.from_pretrained(tmp_path / "made").recommend(history, 3)


def test_the_recipe_writes_a_model_once(folders, tmp_path, capsys):
    tuned, base, _ = folders
    args = recipe.AverageArguments(str(tuned), str(base), str(tmp_path / "out"))
    recipe.main(args)
    assert LLMRecommender.from_pretrained(tmp_path / "out" / "model").recommend([["item-01"]], 3)
    recipe.main(args)
    assert "Reusing" in capsys.readouterr().out
    args.share = 0.5
    with pytest.raises(ValueError, match="share"):
        recipe.main(args)


def test_what_cannot_be_averaged_is_named(folders, tmp_path):
    tuned, base, _ = folders
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="share: .* between 0"):
            average_with_base(tuned, base, share, tmp_path / "made")
    with pytest.raises(ValueError, match="nowhere is neither a folder with a model nor"):
        average_with_base(tuned, tmp_path / "nowhere", 0.5, tmp_path / "made")
    assert not (tmp_path / "made").exists()
