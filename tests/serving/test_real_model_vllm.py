"""Both modes of vLLM with a real pretrained model, in float32, against transformers."""

import asyncio
import gc
import re

import numpy as np
import pytest
import torch
from http_fixtures import front

from llmrec.catalogue.filters import Filter
from llmrec.recommenders import LLMRecommender
from llmrec.serving.vllm.engines import RECOMMEND, engine_arguments

pytestmark = [pytest.mark.pretrained, pytest.mark.vllm]
HISTORIES = [["item-03"], ["item-20", "item-21", "item-22"], ["item-05", "item-06"]]
TITLES = [{"about": "item-03"}, {"about": "item-16"}]


@pytest.fixture(scope="module")
def hf(extended):
    return LLMRecommender.from_pretrained(extended, dtype="float32")


def assert_equal(found, expected):
    assert [[item.item_id for item in one] for one in found] == [[item.item_id for item in one] for one in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose([item.score for item in one], [item.score for item in other], atol=1e-3)


def test_recommend_mode_finds_what_transformers_finds(hf, extended):
    from llmrec.serving.vllm.recommender import VLLMRecommender

    engine = {"distributed_executor_backend": "uni", "max_num_batched_tokens": 2048, "max_model_len": 512}
    assert torch.cuda.is_available() or engine_arguments(extended, RECOMMEND)["dtype"] == "float32"  # of bfloat16
    ours = VLLMRecommender.from_pretrained(extended, dtype="float32", **engine)
    filters = [None, Filter(exclude_seen=True), Filter(where=[("price", "<", 9)])]
    assert_equal(ours.recommend(HISTORIES, [5, 24, 9], filters), hf.recommend(HISTORIES, [5, 24, 9], filters))
    assert_equal(ours.ask("title_to_item", TITLES, 5), hf.ask("title_to_item", TITLES, 5))
    del ours
    gc.collect()


def test_generate_mode_chats_and_writes_what_transformers_writes(hf, extended, tmp_path):
    asyncio.run(_ask(hf, extended, tmp_path))


async def _ask(hf, folder, log):
    async with front(folder, log) as (client, service):

        async def post(path: str, **body) -> list[dict]:
            answer = await client.post(f"/v1/{path}", json={"model": "shop", "temperature": 0, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"]

        # In words, as before its vocabulary grew
        question = [{"role": "user", "content": "What is the capital of France?"}]
        for asked in ({}, {"vllm_xargs": {"semid": "never"}}):
            (choice,) = await post("chat/completions", messages=question, max_tokens=10, **asked)
            said = choice["message"]["content"]
            assert "Paris" in said and not re.search(r"<[abc]_\d+>", said) and choice["items"] == []

        words = await asyncio.to_thread(service.current.recommender.generate_text, "item_to_title", TITLES, 10)
        assert words == hf.generate_text("item_to_title", TITLES, 10)

        # Its beam search, as wide as the catalogue
        (prompt,) = hf.prompts(HISTORIES[:1])
        choices = await post(
            "completions", prompt=prompt, use_beam_search=True, n=24, max_tokens=4, length_penalty=0.0
        )
        (expected,) = hf.recommend(HISTORIES[:1], 24)
        assert [choice["items"][0]["item_id"] for choice in choices] == [item.item_id for item in expected]
