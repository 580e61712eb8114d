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
    (key,) = json.loads((tmp_path / ".self_check.json").read_text())
    for count, value in enumerate([{"way": "by magic", "why": ""}, {"way": 5, "why": []}], 6):
        (tmp_path / ".self_check.json").write_text(json.dumps({key: value}))
        open_new(tiny_model())
        assert len(judged) == count
    assert os.listdir(tmp_path) == [".self_check.json"]
    (tmp_path / "file").touch()
    open_new(tiny_model(), tmp_path / "file")  # no folder that could be written to
    assert len(judged) == 8


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


def of_rope(kind: str, family: str = "qwen3", **more):
    """A model whose rotary positions change at 32 tokens."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, **more}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    longest = 128 if kind == "longrope" else 32
    return tiny_model(family, max_position_embeddings=longest, rope_parameters=rope)


@pytest.mark.parametrize("lengths", [(20, 29), (20, 50), (33, 50), (50, 20, 29, 33)])
def test_prompts_on_both_sides_of_a_rotary_limit_get_the_scores_of_a_plain_pass(lengths):
    model, semids = of_rope("longrope"), random_semids(0)
    ids, mask, trie = asked(semids, lengths)
    output = tree_beam_search(model, ids, mask, trie, len(semids))
    for number, length in enumerate(lengths):
        prompt = ids[number, -length:].tolist()
        with torch.no_grad():
            steps = model(torch.tensor([prompt + list(semid) for semid in semids])).logits.log_softmax(-1)
        own = [
            sum(float(row[length - 1 + i, token]) for i, token in enumerate(semid))
            for row, semid in zip(steps, semids)
        ]
        scores = {tuple(tokens): score for tokens, score in zip(output.tokens[number].tolist(), output.scores[number])}
        assert [float(scores[semid]) for semid in semids] == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize("kind, length", [("longrope", 30), ("longrope", 32), ("dynamic", 30), ("dynamic", 50)])
def test_a_prompt_that_crosses_a_rotary_limit_is_named(kind, length):
    model = of_rope(kind, **({"factor": 4.0} if kind == "dynamic" else {}))
    with pytest.raises(ValueError, match=rf"prompt 1 has {length} tokens, .* crosses the 32 .*\({kind}\) change"):
        tree_beam_search(model, *asked(lengths=(7, length)), 5)
    tree_beam_search(model, *asked(lengths=(7, 29)), 5)
    if kind == "longrope":
        with pytest.raises(ValueError, match="past the length at which the model's rotary positions change"):
            sample_without_replacement(model, *asked(lengths=(7, 50)), 2, [0, 1])


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
