"""What goes beside chats and completions: the items that a text names, and what engine requests carry."""

import asyncio

import numpy as np
import pytest
from tiny import tiny_data, tiny_index

from llmrec.catalogue.semids import SemIDIndex
from llmrec.serving.http.engine_context import EngineContext, VersionedEngine, engine_context
from llmrec.serving.http.service import SemIDScanner


def scan(index: SemIDIndex, text: str) -> list[str]:
    return SemIDScanner(index, index.decode).items(text)


def test_every_item_is_found_in_a_text():
    index = tiny_index(tiny_data())
    for item in index.items:
        assert scan(index, f"Take {index.encode(item)}, it is good.") == [item]
    assert scan(index, "".join(map(index.encode, index.items))) == index.items
    assert scan(index, "no item at all <a_1> <b_0>") == []


def test_of_two_semids_that_fit_the_longer_one_counts():
    index = SemIDIndex(["short", "long", "twin", "again"], [[0, -1], [0, 1], [0, 1], [2, 1]], [3, 3])
    assert scan(index, "<a_0>") == ["short"]
    assert scan(index, "<a_0><b_1>") == ["long", "twin"]
    assert scan(index, "<a_0><b_2>") == ["short"]  # a stray token after it
    assert scan(index, "<b_1><a_0> <b_1>") == ["short"]
    assert scan(index, "<a_2><b_1><a_0><a_2><b_1>") == ["again", "short"]


def test_semids_in_the_words_of_the_llm():
    words = [[" red", " blue"], [" lamp", " lampshade"]]
    index = SemIDIndex(
        ["a", "b", "c"], np.array([[0, 0], [0, 1], [1, 0]]), [2, 2], level_tokens=words, adds_tokens=False
    )
    assert scan(index, "I like red lampshade; and blue lamp;") == ["b", "c"]
    assert scan(index, "a red lamp is nice; a blue lamp") == []


class Recorded:
    """An engine client that only says what came."""

    name = "engine"

    async def generate(self, prompt, sampling_params, request_id, **more):
        yield len(prompt["prompt_token_ids"]), sampling_params.extra_args, more


class Params:
    """What of vLLM's `SamplingParams` is looked at."""

    def __init__(self, extra_args=None):
        self.extra_args = extra_args


def sent(engine, length: int, params: Params, **more):
    async def first():
        async for output in engine.generate({"prompt_token_ids": [1] * length}, params, "id", **more):
            return output

    return asyncio.run(first())


@pytest.fixture
def in_context():
    tokens = []
    yield lambda context: tokens.append(engine_context.set(context))
    for token in reversed(tokens):
        engine_context.reset(token)


def test_beams_say_where_the_answer_of_their_prompt_begins(in_context):
    engine, params = VersionedEngine(Recorded()), Params()
    assert sent(engine, 9, params) == (9, None, {}) and engine.name == "engine"
    in_context(EngineContext(4, {"semid": "next"}, beam_search=True))
    for length in (9, 10, 10, 11):
        expected = {"semid": "next", "semid_start": 9, "semid_version": 4}
        assert sent(engine, length, params, priority=1) == (length, expected, {"priority": 1})
    assert params.extra_args is None  # beams share their parameters


def test_other_engine_requests_begin_after_their_own_prompt(in_context):
    engine = VersionedEngine(Recorded())
    in_context(EngineContext(4, {"semid": "next"}))
    assert sent(engine, 9, Params({"mine": 1}))[1] == {
        "mine": 1, "semid": "next", "semid_start": 9, "semid_version": 4
    }  # fmt: skip
    assert sent(engine, 5, Params())[1]["semid_start"] == 5
    in_context(EngineContext(5))
    assert sent(engine, 5, Params({"semid_version": 1}))[1] == {"semid_version": 5}
