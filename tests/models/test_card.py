"""The model card names the pretrained model that a chain of stages began with."""

import json

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_data, tiny_index
from trl import SFTConfig

from llmrec.instructions import load_prompt
from llmrec.models.card import write_model_card
from llmrec.models.folder import RecommenderConfig
from recipes.sft import DataArguments


@pytest.mark.parametrize(
    "first, named", [("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), (None, None), ("/x/own", None), ("{warmed}", None)]
)
def test_the_card_names_the_model_of_the_hub_that_it_was_made_of(tmp_path, first, named):
    base, warmed = tmp_path / "base", tmp_path / "warmed"
    for folder, start in ((base, first and first.format(warmed=warmed)), (warmed, str(base))):
        folder.mkdir()
        (folder / "stage.json").write_text(json.dumps({"settings": {"model_name_or_path": start}}))
    data = tiny_data()
    index = tiny_index(data)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict())
    arguments = DataArguments(str(tmp_path)), SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False)
    for start in (str(warmed), first):
        if start is not None:
            write_model_card(tmp_path, config, index, {}, *arguments, base_model=start.format(warmed=warmed))
            assert ModelCard.load(tmp_path / "README.md").data.base_model == named
