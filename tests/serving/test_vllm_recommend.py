"""`recommend` mode gives the lists and scores of the Hugging Face search, and that those of a naive beam search."""

import gc
from dataclasses import replace

import numpy as np
import pytest
from decoding import reference_search
from serving_folders import random_folder

from llmrec.catalogue.filters import Filter
from llmrec.recommenders import LLMRecommender
from llmrec.serving.vllm.engines import RECOMMEND, engine_arguments

FOLDERS = {
    "qwen3, vocabulary": {"family": "qwen3", "depth": 8},
    "qwen2, catalogue, untied": {"family": "qwen2", "tied": False, "normalize": "catalogue", "depth": 3},
    "llama, vocabulary, untied": {"family": "llama", "tied": False, "depth": 1, "num_items": 30},
}
ENGINE = {"dtype": "float32", "distributed_executor_backend": "uni", "max_num_batched_tokens": 2048}


def histories(recommender: LLMRecommender, count: int) -> list[list[str]]:
    """Of 0 to 12 items."""
    rng = np.random.default_rng(3)
    return [rng.choice(recommender.item_ids, rng.integers(0, 13)).tolist() for _ in range(count)]


@pytest.fixture(scope="module", params=FOLDERS)
def both(request, tmp_path_factory):
    from llmrec.serving.vllm.recommender import VLLMRecommender

    folder = random_folder(tmp_path_factory.mktemp("serving") / "model", **FOLDERS[request.param])
    ours = VLLMRecommender.from_pretrained(folder, **ENGINE)
    yield LLMRecommender.from_pretrained(folder, dtype="float32"), ours
    del ours
    gc.collect()


def assert_equal(found, expected):
    assert [[item.item_id for item in one] for one in found] == [[item.item_id for item in one] for one in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose([item.score for item in one], [item.score for item in other], atol=1e-4)


@pytest.mark.vllm
def test_lists_and_scores_are_those_of_transformers(both):
    hf, ours = both
    asked = histories(hf, 24)
    assert_equal(ours.recommend(asked, k=10), hf.recommend(asked, k=10))
    # many lengths, widths and numbers of items in one batch, more beams than items among them
    ks = [1, 7, 40, 200] * 6
    assert_equal(ours.recommend(asked, k=ks), hf.recommend(asked, k=ks))
    assert_equal(ours.recommend(asked[:3], k=9, num_beams=512), hf.recommend(asked[:3], k=9, num_beams=512))


@pytest.mark.vllm
def test_scores_are_those_of_a_naive_beam_search(both, monkeypatch):
    hf, ours = both
    monkeypatch.setattr(reference_search, "EOS", hf.tokenizer.eos_token_id)
    semids = [tuple(hf.tokenizer.convert_tokens_to_ids(hf.index.tokens_of_row(row))) for row in range(len(hf.index))]
    prompts = ours.token_ids(ours.prompts(histories(hf, 3)))
    for prompt, hits in zip(prompts, ours.search(prompts, [10] * 3, num_beams=20)):
        beams = dict(reference_search.reference_search(hf.model, prompt, semids, 20, hf.config.normalize))
        scores = {}
        for semid, item in zip(semids, hf.catalogue.item_of_row):
            if semid in beams:
                scores[item] = np.logaddexp(scores.get(item, -np.inf), beams[semid])
        best = sorted(scores.values(), reverse=True)[:10]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-4)
        np.testing.assert_allclose([scores[hit.item] for hit in hits], best, atol=1e-4)


@pytest.mark.vllm
def test_filters(both):
    hf, ours = both
    asked = histories(hf, 6)
    requests = [
        Filter(exclude_seen=True),
        Filter(where=[("price", "<", 0.3), ("in_stock", "==", True)]),
        Filter(allow=hf.item_ids[5:9], exclude_seen=True),
        Filter(deny=hf.item_ids[:20], at_most={"brand": 1}),
        Filter(where=[("brand", "in", ["brand 1", "brand 2"])], at_most={"brand": 2}),
        Filter(where=[("price", ">", 2.0)], at_most={"brand": 1}),
    ]
    found = ours.recommend(asked, 30, requests)
    assert_equal(found, hf.recommend(asked, 30, requests))
    assert len(found[2]) == len(set(hf.item_ids[5:9]) - set(asked[2]))
    assert [len(found[4]), len(found[5])] == [4, 0]
    with pytest.raises(ValueError, match="'colour' is not in the catalogue"):
        ours.recommend(asked[:1], 5, Filter(where=[("colour", "==", "red")]))
    assert_equal(ours.recommend(asked[:1], 5), hf.recommend(asked[:1], 5))


@pytest.mark.vllm
def test_a_prompt_that_is_too_long_fails_alone(both):
    hf, ours = both
    prompts = ours.token_ids(ours.prompts(histories(hf, 3)))
    tokens = (prompts[0] * 300)[:256]  # the model has 256 positions, and a Semantic ID needs some
    from llmrec.serving.vllm.engines import SearchRequest

    outputs = ours.engine.search([prompts[0], tokens, prompts[1]], [SearchRequest(3, 5)] * 3)
    longest = 256 if hf.trie.depth > 1 else 255  # one token is scored without a further position
    assert [len(output) for output in outputs] == ([4, 1, 4] if longest == 256 else [4, 4, 4])
    with pytest.raises(RuntimeError, match="the search failed"):
        ours.search([prompts[0]], [3], [["item-0001"]], [Filter(exclude_seen=True)], view="none")
    assert_equal(ours.recommend(histories(hf, 1), k=3), hf.recommend(histories(hf, 1), k=3))


@pytest.mark.vllm
def test_an_argument_that_vllm_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^vLLM has no argument 'dtyp': did you mean 'dtype'"):
        engine_arguments(tmp_path, RECOMMEND, dtyp="float32")


def test_a_search_in_slices_gives_the_same_list(both):
    """And each step answers what was asked beside it."""
    from llmrec.serving.vllm.engines import FAILED, GOES_ON, SearchRequest

    hf, ours = both
    prompt, other = ours.token_ids(ours.prompts(histories(hf, 2)))
    [whole, beside] = ours.engine.search([prompt, other], [SearchRequest(9, 20), SearchRequest(3, 5)])
    sliced = replace(SearchRequest(9, 20), sliced="a search")
    output, besides = ours.engine.search([prompt, other], [sliced, SearchRequest(3, 5)])
    slices = 1
    while output[0, 0] == GOES_ON:
        assert len(output) == 1
        np.testing.assert_allclose(besides[1:], beside[1:], atol=1e-4)
        again = [replace(sliced, begun=True), SearchRequest(3, 5)]
        output, besides = ours.engine.search([prompt[:1], other], again)
        slices += 1
    assert slices >= hf.trie.depth
    np.testing.assert_allclose(output[1:], whole[1:], atol=1e-4)
    [forgotten] = ours.engine.search([prompt[:1]], [replace(sliced, begun=True)])
    assert forgotten[0, 0] == FAILED
