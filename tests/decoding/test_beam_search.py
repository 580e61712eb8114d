import logging
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference_search import (
    EOS,
    VOCABULARY,
    assert_same,
    exhaustive,
    found,
    matrix,
    prompts,
    random_semids,
    reference_search,
    tiny_model,
    with_adapters,
)
from transformers import Gemma2Config, Gemma2ForCausalLM

from llmrec.decoding import search, tree_beam_search
from llmrec.decoding.head import head_rows, unwrap
from llmrec.decoding.tree_attention import prefill, unsupported
from llmrec.decoding.trie import SemIDTrie

LENGTHS = [7, 3, 12]


def prompt_tokens(ids, mask, row):
    return ids[row][mask[row].bool()].tolist()


def compare(model, semids, num_beams, normalize="vocabulary", side="left", reference_model=None, tolerance=1e-4):
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts(LENGTHS, side)
    output = tree_beam_search(model, ids, mask, trie, num_beams, normalize=normalize)
    for row in range(len(LENGTHS)):
        prompt = prompt_tokens(ids, mask, row)
        expected = reference_search(reference_model or model, prompt, semids, num_beams, normalize)
        ours = found(output, row)
        assert_same(ours, expected, tolerance)
        assert {semid for semid, _ in ours} <= set(semids) and len({semid for semid, _ in ours}) == len(ours)
        for (semid, _), low, high in zip(ours, output.low[row].tolist(), output.high[row].tolist()):
            rows = trie.order[low:high].tolist()
            assert rows == [place for place, other in enumerate(semids) if other == semid]
    return output


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_naive_search(seed, ragged, normalize):
    model = tiny_model(seed=seed, tied=seed % 2 == 1)
    semids = random_semids(seed, rows=40, depth=4, ragged=ragged, width=6)
    compare(model, semids, [2, 3, 5, 9][seed], normalize, side=["left", "right"][seed % 2])


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_equals_the_naive_search_in_every_family(family, kv_heads):
    tied = kv_heads == 1
    compare(tiny_model(family, tied, 5, kv_heads), random_semids(5, ragged=tied), 4, ["vocabulary", "catalogue"][tied])


def test_padding_in_the_middle_and_on_both_sides_changes_nothing():
    model, semids = tiny_model(), random_semids(0)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([6, 6])
    alone = tree_beam_search(model, ids, mask, trie, 4)
    spread = torch.zeros(2, 11, dtype=torch.long)
    columns = torch.tensor([[1, 2, 4, 5, 6, 9], [0, 3, 4, 5, 8, 10]])
    held = torch.zeros_like(spread).scatter(1, columns, 1)
    output = tree_beam_search(model, spread.scatter(1, columns, ids), held, trie, 4)
    assert output.tokens.equal(alone.tokens)
    torch.testing.assert_close(output.scores, alone.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("ragged", [False, True])
def test_enough_beams_are_exhaustive_and_a_catalogue_sums_to_one(normalize, ragged):
    model, semids = tiny_model(seed=3), random_semids(3, ragged=ragged)
    output = compare(model, semids, len(semids) + 10, normalize)
    ids, mask = prompts(LENGTHS)
    for row in range(len(LENGTHS)):
        scores = exhaustive(model, prompt_tokens(ids, mask, row), semids, normalize)
        ours = dict(found(output, row))
        assert ours.keys() == scores.keys()
        np.testing.assert_allclose([ours[semid] for semid in scores], list(scores.values()), atol=1e-4)
        if normalize == "catalogue":
            assert sum(map(math.exp, ours.values())) == pytest.approx(1, abs=1e-4)
    assert output.exhausted.all()
    fewer = tree_beam_search(model, ids, mask, SemIDTrie(matrix(semids), EOS), 2, normalize=normalize)
    assert not fewer.exhausted.any()


def test_one_beam_one_level_and_one_item():
    model = tiny_model()
    compare(model, [(20, 21, 22)], 5)
    compare(model, [(20,), (21,), (25,)], 2)
    compare(model, random_semids(1), 1)


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_adapters_count_merged_or_not(tied, normalize):
    model, semids = with_adapters(tied), random_semids(2, ragged=True)
    rows = torch.arange(15, 35)
    hidden = torch.randn(3, 32)
    head = model.get_output_embeddings()
    with torch.no_grad():
        expected = head(hidden)[:, rows]
        weight, bias = head_rows(unwrap(model).get_output_embeddings(), rows)
        torch.testing.assert_close(torch.nn.functional.linear(hidden, weight, bias), expected)
        with model.disable_adapter():
            plain = head(hidden)[:, rows]
            assert not torch.allclose(plain, expected)
            torch.testing.assert_close(hidden @ head_rows(unwrap(model).get_output_embeddings(), rows)[0].T, plain)
    unmerged = compare(model, semids, 5, normalize)
    merged = model.merge_and_unload()
    output = compare(merged, semids, 5, normalize)
    assert output.tokens.equal(unmerged.tokens)
    torch.testing.assert_close(output.scores, unmerged.scores, atol=1e-4, rtol=0)


def test_trainable_tokens_on_an_untied_head():
    torch.manual_seed(0)
    tokens = list(range(18, 30))
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": tokens, "lm_head": tokens},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(tiny_model(tied=False, seed=2), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.normal_(0, 0.3)
    compare(model, random_semids(2), 4, "catalogue")


def test_head_rows_of_saved_and_unknown_heads():
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(seed=2), config).eval()
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.normal_()
    compare(model, random_semids(2), 4, "catalogue")
    dora = LoraConfig(r=2, target_modules=["lm_head"], use_dora=True, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny_model(seed=2), dora).eval()
    assert head_rows(unwrap(model).get_output_embeddings(), torch.arange(3)) is None
    compare(model, random_semids(2), 4, "catalogue")


def test_head_rows_carry_gradients():
    model = with_adapters(tied=False)
    head_rows(unwrap(model).get_output_embeddings(), torch.arange(20, 25))[0].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all("lm_head.lora_" in name for name in trained)


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("ragged", [False, True])
def test_filters_remove_and_leave_scores_alone(ragged, normalize):
    model, semids = tiny_model(seed=4), random_semids(4, rows=60, ragged=ragged)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts(LENGTHS)
    rng = np.random.default_rng(0)
    masks = [None, rng.random(len(semids)) < 0.3, np.zeros(len(semids), bool)]
    denied = [rng.integers(0, len(semids), 8), rng.integers(0, len(semids), 8), np.array([3])]
    for num_beams in (3, len(semids)):
        output = tree_beam_search(model, ids, mask, trie, num_beams, normalize=normalize, masks=masks, denied=denied)
        for row in range(len(LENGTHS)):
            allowed = np.ones(len(semids), bool) if masks[row] is None else masks[row].copy()
            allowed[denied[row]] = False
            left = {semid for semid, keep in zip(semids, allowed) if keep}
            prompt = prompt_tokens(ids, mask, row)
            ours = found(output, row)
            assert_same(ours, reference_search(model, prompt, semids, num_beams, normalize, left))
            if num_beams == len(semids):
                scores = exhaustive(model, prompt, semids, normalize)
                assert dict(ours) == pytest.approx({semid: scores[semid] for semid in left}, abs=1e-4)
        assert not found(output, 2) and (output.low[2] == output.high[2]).all()


def test_equal_scores_go_to_the_semid_that_sorts_first():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    semids = random_semids(0, rows=60)
    for num_beams in (1, 4, 7):
        output = compare(model, semids, num_beams)
        first = found(output, 0)
        assert [semid for semid, _ in first] == sorted(semid for semid, _ in first)
        assert torch.equal(output.tokens[0], output.tokens[1])


def test_equal_semids_share_a_leaf():
    semids = [(20, 21), (22, 23), (20, 21), (20, 24), (20, 21)]
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([5])
    output = tree_beam_search(tiny_model(), ids, mask, trie, 5)
    assert len(found(output, 0)) == 3
    place = found(output, 0).index(next(item for item in found(output, 0) if item[0] == (20, 21)))
    assert trie.order[output.low[0, place] : output.high[0, place]].tolist() == [0, 2, 4]


def test_bfloat16_finds_mostly_the_same_set():
    model, semids = tiny_model(seed=6), random_semids(6, rows=200, width=12)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([9, 4, 7, 12])
    exact = tree_beam_search(model, ids, mask, trie, 20)
    model.to(torch.bfloat16)
    output = tree_beam_search(model, ids, mask, trie, 20)
    assert output.scores.dtype == torch.float32
    for row in range(4):
        a, b = ({semid for semid, _ in found(beams, row)} for beams in (exact, output))
        assert len(b) == 20 and b <= set(semids)
        assert len(a & b) >= 15


def test_distributed_wrappers_are_called_as_they_are(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        plain = tiny_model(seed=1)
        wrapped = torch.nn.parallel.DistributedDataParallel(plain)
        calls = []
        compare(wrapped, random_semids(1), 4, reference_model=plain)  # checks itself
        wrapped.register_forward_hook(lambda *args: calls.append(1))
        compare(wrapped, random_semids(1), 4, reference_model=plain)
        assert len(calls) == 3  # the prefill, and one call for each level but the last
    finally:
        torch.distributed.destroy_process_group()


def test_a_search_leaves_the_model_as_it_was():
    model, semids = tiny_model(), random_semids(0)
    ids, mask = prompts(LENGTHS)
    before = model(ids, attention_mask=mask).logits
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        prefill(model, ids, mask, lambda head, hidden: 1 / 0)
    tree_beam_search(model, ids, mask, SemIDTrie(matrix(semids), EOS), 4)
    assert model.config._attn_implementation == "sdpa"
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model(ids, attention_mask=mask).logits.equal(before)


def test_other_models_fall_back_to_generate_and_say_so_once(caplog):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.3,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = Gemma2ForCausalLM(config).eval()
    search.warn_of_generate.cache_clear()
    with caplog.at_level(logging.WARNING):
        for normalize in ("vocabulary", "catalogue"):
            semids = random_semids(7, ragged=True)
            compare(model, semids, 4, normalize, side="right")
            compare(model, semids, 1, normalize)
            compare(model, semids, len(semids) + 5, normalize)
    assert len([record for record in caplog.records if "generate()" in record.getMessage()]) == 1
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts(LENGTHS)
    keep = np.arange(len(semids)) % 3 == 0
    output = tree_beam_search(model, ids, mask, trie, 3, masks=[keep] * 3, denied=[np.array([0])] * 3)
    left = {semid for row, semid in enumerate(semids) if keep[row] and row}
    for row in range(3):
        assert_same(
            found(output, row), reference_search(model, prompt_tokens(ids, mask, row), semids, 3, allowed=left)
        )


def test_bad_requests_are_named():
    model, trie = tiny_model(), SemIDTrie(matrix(random_semids(0)), EOS)
    ids, mask = prompts([3, 4])
    with pytest.raises(ValueError, match="num_beams is 0"):
        tree_beam_search(model, ids, mask, trie, 0)
    with pytest.raises(ValueError, match="normalize is 'softmax'"):
        tree_beam_search(model, ids, mask, trie, 2, normalize="softmax")
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        tree_beam_search(model, ids, torch.tensor([[0] * 4, [1] * 4]), trie, 2)
    with pytest.raises(ValueError, match="token 69.*64 rows"):
        tree_beam_search(model, ids, mask, SemIDTrie(matrix([(20, VOCABULARY + 5)])), 2)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        tree_beam_search(model, ids, mask, trie, 2)


def test_a_model_on_several_devices_searches_through_generate():
    model, semids = tiny_model(), random_semids(0)
    assert unsupported(model) is None
    model.hf_device_map = {"model": "cpu", "lm_head": "cpu"}
    assert unsupported(model) is None
    model.hf_device_map = {"model": 0, "lm_head": 1}
    assert unsupported(model) == "its layers lie on several devices (device_map)"
    compare(model, semids, 4)
