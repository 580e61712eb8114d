"""No model is searched in a way that gives other scores than its own."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from reference_search import EOS, assert_same, exhaustive, found, matrix, prompts, random_semids, tiny_model

from llmrec.decoding import search, search_items, self_check, tree_beam_search
from llmrec.decoding.logits_processor import generate_search
from llmrec.decoding.trie import SemIDTrie
from llmrec.rl.sampling import sample_without_replacement
from scripts.sweep_families import GENERATE, UNCACHED, sweep
from scripts.sweep_families import tiny_model as of_family


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(self_check, "_of_keys", {})
    search.warn_of_generate.cache_clear()


def asked(semids=None, lengths=(7, 4)):
    return *prompts(list(lengths)), SemIDTrie(matrix(semids or random_semids(0)), EOS)


# A latent in place of keys, keywords that do not arrive, keys of other heads, two attentions a layer, windows, states
@pytest.mark.parametrize("family", ["deepseek_v3", "nemotron", "jetmoe", "hrm_text", "gemma2", "mamba", "jamba"])
def test_a_model_of_another_kind_is_recognised_and_searched_exactly(family):
    result = sweep(family)
    assert result["outcome"] == GENERATE and result["why"], result


@pytest.mark.parametrize("family", ["recurrent_gemma", "minimax", "deepseek_v4", "rwkv"])
def test_a_state_that_does_not_follow_beams_is_not_kept(family):
    assert sweep(family)["outcome"] == UNCACHED


def test_the_tree_is_searched_where_it_is_exact():
    assert sweep("llama")["outcome"] == search.TREE


def test_a_search_that_is_silently_off_is_not_used(monkeypatch, caplog):
    """As a model would be whose attention does what no config says."""
    model, (ids, mask, trie) = tiny_model(), asked()
    honest = search.extend

    def wrong(model, tree, tokens, parent, at_head):
        tree.prompts.lengths = tree.prompts.lengths + 1
        return honest(model, tree, tokens, parent, at_head)

    monkeypatch.setattr(search, "extend", wrong)
    with caplog.at_level(logging.WARNING):
        output = tree_beam_search(model, ids, mask, trie, 100)
        tree_beam_search(model, ids, mask, trie, 5)
    (record,) = [record for record in caplog.records if "generate()" in record.getMessage()]
    assert "the tree search is off by" in record.getMessage()
    scores = exhaustive(model, ids[0].tolist(), random_semids(0))
    assert dict(found(output, 0)) == pytest.approx(scores, abs=1e-4)
    with pytest.raises(ValueError, match="cannot be sampled from this model: the tree search is off"):
        sample_without_replacement(model, ids, mask, trie, 3, [0, 1])


def test_a_model_that_no_search_gets_right_is_refused_by_name():
    """A reader of both sides: what it says of a prefix depends on what follows."""
    config = of_family("bert").config
    config.is_decoder = False
    model = type(of_family("bert"))(config).eval()
    ids, mask, trie = asked()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    with pytest.raises(ValueError, match=r"BertLMHeadModel cannot be searched: .*tree.*generate\(\) is off by"):
        tree_beam_search(model, ids, mask, trie, 3)


def test_what_is_found_is_kept_in_the_folder_and_asked_again_when_it_may_change(tmp_path, monkeypatch):
    ids, mask, trie = asked()
    judged = []
    monkeypatch.setattr(self_check, "_judge", lambda *args, judge=self_check._judge: judged.append(1) or judge(*args))

    def open_new(model, folder=tmp_path):
        self_check._of_keys.clear()
        return search.open_search(model, ids, mask, trie, "vocabulary", folder)

    model = tiny_model()
    open_new(model)
    open_new(model)
    open_new(tiny_model(seed=1))
    assert len(judged) == 1 and len(json.loads((tmp_path / ".self_check.json").read_text())) == 1
    open_new(tiny_model().to(torch.bfloat16))
    open_new(tiny_model(num_hidden_layers=1))
    model.config._attn_implementation = "eager"
    open_new(model)
    assert len(judged) == 4 and len(json.loads((tmp_path / ".self_check.json").read_text())) == 4
    (tmp_path / ".self_check.json").write_text("damaged")
    open_new(tiny_model())
    assert len(judged) == 5 and len(json.loads((tmp_path / ".self_check.json").read_text())) == 1
    assert os.listdir(tmp_path) == [".self_check.json"]
    (tmp_path / "file").touch()
    open_new(tiny_model(), tmp_path / "file")  # no folder that could be written to
    assert len(judged) == 6


def test_the_check_leaves_a_model_as_it_was_and_is_asked_in_evaluation_mode():
    model = tiny_model(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    assert search.no_tree(model) is None
    assert [module.training for module in model.modules()] == before and not all(before)
    assert torch.random.get_rng_state().equal(state)


def test_low_precision_is_no_fault():
    for dtype in (torch.bfloat16, torch.float16):
        for family in ("llama", "qwen3_moe"):
            assert search.no_tree(of_family(family).to(dtype)) is None


def test_prompts_of_any_length_and_order_through_generate():
    model, semids = of_family("recurrent_gemma"), [(100 + a, 110 + b) for a in range(3) for b in range(3)]
    lengths = [4, 9, 4, 6]
    ids, mask = prompts(lengths, side="right")
    trie = SemIDTrie(matrix(semids))  # without an EOS token: every end is forced
    output = generate_search(model, ids, mask, trie, "vocabulary")(None, 20, None)
    part = generate_search(model, ids, mask, trie, "vocabulary")(torch.tensor([3, 1]), 4, None)
    assert output.exhausted.all() and not part.exhausted.any()
    for row, length in enumerate(lengths):
        with torch.no_grad():
            for semid, score in found(output, row):
                logits = model(torch.tensor([[*ids[row, :length].tolist(), *semid]]), use_cache=False).logits[0]
                steps = logits.log_softmax(-1)[length - 1 : -1]
                assert score == pytest.approx(sum(float(step[token]) for step, token in zip(steps, semid)), abs=1e-4)
        assert len(found(output, row)) == 9
    assert_same(found(part, 0), found(output, 3)[:4])
    assert_same(found(part, 1), found(output, 1)[:4])


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
@pytest.mark.parametrize("k", [9, 10, 50])
def test_an_exhausted_catalogue_ends_every_search(family, k):
    semids = [(100 + a, 110 + b) for a in range(3) for b in range(3)]
    model, (ids, mask, _) = of_family(family), asked()
    trie, items = SemIDTrie(matrix(semids), EOS), np.arange(9) // 2  # five items, four of them with two SemIDs
    denied = [np.array([0, 1]), np.arange(9)]
    for beams in (1, 4, 30):
        assert [len(hits) for hits in search_items(model, ids, mask, trie, items, [k, k], beams)] == [5, 5]
        left = search_items(model, ids, mask, trie, items, [k, 1], beams, denied=denied)
        assert [len(hits) for hits in left] == [4, 0]
