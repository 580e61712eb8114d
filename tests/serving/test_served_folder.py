"""What a server serves: a folder, or a model of the Hub."""

from pathlib import Path

import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.serving.__main__ import name_of, served


def test_a_model_of_the_hub_is_served_from_its_cache_and_its_catalogue_is_kept_here(tmp_path, hub):
    folder = write_tiny_base(tmp_path / "shop", tiny_data(), tiny_index(tiny_data()))
    assert (*served(str(folder)), name_of(str(folder))) == (folder, None, "shop")
    assert name_of("me/shop-llm@v2") == name_of("me/shop-llm", "v2") == "shop-llm"
    LLMRecommender.from_pretrained(folder).push_to_hub("me/shop-llm", revision="v2")
    for there in (served("me/shop-llm", "v2"), served("me/shop-llm@v2")):
        assert there[1] == Path("catalogue") and "v2" in there[0].parts
        assert RecommenderConfig.load(there[0]) == RecommenderConfig.load(folder)
    with pytest.raises(ValueError, match="me/shop-llm@v3 is neither a folder nor a model of the Hub"):
        served("me/shop-llm@v3")
    with pytest.raises(ValueError, match="revision='v2' is for names of the Hub"):
        served(str(folder), "v2")
