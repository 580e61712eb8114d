"""Log-probabilities of groups: equal to plain calls of the model over the trie's children, in values and gradients."""

import numpy as np
import pytest
import torch
from decoding.reference_search import EOS, matrix, random_semids, tiny_model
from peft import LoraConfig, get_peft_model
from rl_small import (
    LENGTHS,
    distribution,
    grouped,
    over_catalogue,
    plain,
    prompt_tokens,
    rows_of,
    written,
)
from tiny import tiny_data, tiny_index
from tiny import tiny_model as tiny_qwen3
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import ModelConfig

from llmrec.decoding import SemIDTrie, tree_beam_search
from llmrec.decoding.head import head_rows, unwrap
from llmrec.rl import Groups, log_probs
from llmrec.rl.log_probs import check_model
from llmrec.training import lora_config


def case(seed: int, tied: bool = False, size: int = 5, **settings):
    """A model, a ragged catalogue, a group of random items for each prompt; one item of it is where another begins."""
    model = tiny_model(seed=seed, tied=tied, **settings)
    semids = random_semids(seed, rows=30, ragged=True, width=5)
    rng = np.random.default_rng(seed)
    begun = [semid for semid in semids if written(semid, semids)[-1] == EOS]
    chosen = [[begun[n], *(semids[i] for i in rng.permutation(len(semids))[1:size])] for n in range(len(LENGTHS))]
    groups = grouped([[written(semid, semids) for semid in group] for group in chosen])
    assert len({semid for group in chosen for semid in group if len(semid) < 3}) > 1
    return model, semids, SemIDTrie(matrix(semids), EOS), chosen, groups


def assert_equals_plain(found, groups: Groups, wanted) -> None:
    """`wanted(row, place)` is float64 [tokens, 2]; padding has 0."""
    logps, entropies = found
    for row in range(groups.completions.shape[0]):
        for place in range(groups.completions.shape[1]):
            expected = np.zeros((groups.completions.shape[2], 2))
            one = wanted(row, place)
            expected[: len(one)] = one
            ours = torch.stack([logps[row, place], entropies[row, place]], -1).detach().numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_a_softmax_over_the_children(seed, tied, temperature):
    model, semids, trie, chosen, groups = case(seed, tied)
    found = log_probs(model, groups, trie, temperature)
    assert found[0].dtype == torch.float32 and found[0].shape == groups.completions.shape
    assert_equals_plain(
        found,
        groups,
        lambda row, place: over_catalogue(model, prompt_tokens(groups, row), chosen[row][place], semids, temperature),
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("seed", range(2))
def test_equal_a_softmax_over_the_vocabulary(seed, temperature):
    model, _, _, _, groups = case(seed, tied=seed == 0)

    def wanted(row, place):
        tokens = groups.completions[row, place][groups.completion_mask[row, place]].tolist()
        return plain(model, prompt_tokens(groups, row), tokens, [None] * len(tokens), temperature)

    assert_equals_plain(log_probs(model, groups, None, temperature), groups, wanted)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_catalogue_sums_to_one(seed, temperature):
    model, semids, trie, _, _ = case(seed)
    groups = grouped([[written(semid, semids) for semid in semids]] * len(LENGTHS))
    logps, _ = log_probs(model, groups, trie, temperature)
    torch.testing.assert_close(logps.sum(-1).exp().sum(-1), torch.ones(len(LENGTHS)), atol=1e-5, rtol=0)
    over_words, _ = log_probs(model, groups, None, temperature)
    assert (over_words.sum(-1).exp().sum(-1) < 0.9).all(), "over the vocabulary some mass lies outside"


def test_the_entropies_add_up_to_that_of_the_items():
    """The chain rule: over items, the expectation of the sum of a completion's entropies is the entropy."""
    model, semids, trie, _, _ = case(0)
    groups = grouped([[written(semid, semids) for semid in semids]] * len(LENGTHS))
    logps, entropies = log_probs(model, groups, trie)
    for row in range(len(LENGTHS)):
        p = distribution(model, prompt_tokens(groups, row), semids)
        mean = float((logps[row].sum(-1).exp() @ entropies[row].sum(-1)).detach())
        assert mean == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)


def gradients(model, groups: Groups, trie, temperature: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Values, and the gradients of a scalar that weighs every token and every entropy differently."""
    model.zero_grad()
    logps, entropies = log_probs(model, groups, trie, temperature)
    weights = torch.linspace(-1, 1, logps.numel())
    (weights @ logps.flatten() + 0.3 * (weights.flip(0) @ entropies.flatten())).backward()
    return logps.flatten(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_group_in_one_row_is_a_row_for_each(tied, normalize, attention):
    model, _, trie, _, groups = case(1, tied, attn_implementation=attention)
    trie = trie if normalize == "catalogue" else None
    together, found = gradients(model, groups, trie, 0.8)
    alone, wanted = gradients(model, Groups.of(*rows_of(groups), groups.completions.shape[2], 1), trie, 0.8)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for name in wanted:
        error = (found[name] - wanted[name]).norm() / wanted[name].norm()
        assert wanted[name].norm() > 0 and error < 1e-4, name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
def test_adapters_and_trained_rows_count(tied, normalize):
    data = tiny_data()
    index = tiny_index(data)
    codes = index.codes.copy()
    codes[1::2, :2] = codes[::2, :2]  # every other item begins with the whole of the one before
    index = index.replaced(index.item_ids, codes)
    model, tokenizer = tiny_qwen3(data, index, tie_word_embeddings=tied, initializer_range=0.2)
    lora = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj", "up_proj"])
    peft = get_peft_model(model, lora_config(lora, model, tokenizer, index)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    trie = SemIDTrie.from_index(index, tokenizer)
    semids = [tuple(tokenizer.convert_tokens_to_ids(index.tokens_of_row(row))) for row in range(len(index))]
    assert trie.eos_token_id == EOS, "the helpers of these tests write it"
    chosen = [[semids[n + i] for i in (0, 6, 13, 19)] for n in range(len(LENGTHS))]
    groups = grouped([[written(semid, semids) for semid in group] for group in chosen])

    def wanted(row, place):
        prompt = prompt_tokens(groups, row)
        if normalize == "catalogue":
            return over_catalogue(peft, prompt, chosen[row][place], semids, 0.9)
        tokens = written(chosen[row][place], semids)
        return plain(peft, prompt, tokens, [None] * len(tokens), 0.9)

    found = log_probs(peft, groups, trie if normalize == "catalogue" else None, 0.9)
    assert_equals_plain(found, groups, wanted)
    with peft.disable_adapter():
        reference, _ = log_probs(peft, groups, trie if normalize == "catalogue" else None, 0.9)
        assert (reference - found[0]).abs().max() > 0.1, "the reference is the model without its adapter"
    _, trained = gradients(peft, groups, trie if normalize == "catalogue" else None, 0.9)
    assert any("trainable_tokens_delta" in name for name in trained)
    assert all(p.requires_grad == (name in trained) for name, p in peft.named_parameters())


def test_thoughts_are_normalised_over_the_vocabulary():
    """Text of any length, with tokens of items in it."""
    model, rng = tiny_model(seed=2), np.random.default_rng(0)
    texts = [[rng.integers(2, 40, length).tolist() for length in (4, 1, 9)] for _ in LENGTHS]
    groups = grouped(texts)
    assert_equals_plain(
        log_probs(model, groups, None, 0.7),
        groups,
        lambda row, place: plain(
            model, prompt_tokens(groups, row), texts[row][place], [None] * len(texts[row][place]), 0.7
        ),
    )


def test_a_head_that_cannot_be_read_by_rows_is_run_whole():
    dora = LoraConfig(r=2, target_modules=["lm_head"], use_dora=True, task_type="CAUSAL_LM", init_lora_weights=False)
    _, semids, trie, chosen, groups = case(2)
    model = get_peft_model(tiny_model(seed=2), dora).eval()
    assert head_rows(unwrap(model).get_output_embeddings(), torch.arange(3)) is None
    assert_equals_plain(
        log_probs(model, groups, trie),
        groups,
        lambda row, place: over_catalogue(model, prompt_tokens(groups, row), chosen[row][place], semids),
    )


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_scores_of_the_beam_search(seed):
    model, semids, trie, _, groups = case(seed)
    found = tree_beam_search(model, groups.prompts, groups.prompt_mask.long(), trie, 6, normalize="catalogue")
    beams = [[written(tuple(t for t in beam if t >= 0), semids) for beam in row] for row in found.tokens.tolist()]
    logps, _ = log_probs(model, grouped(beams), trie)
    torch.testing.assert_close(logps.sum(-1), found.scores, atol=1e-5, rtol=0)


def test_items_of_one_token():
    model, semids = tiny_model(), [(20,), (22,), (25,)]
    groups = grouped([[[22], [20]]] * len(LENGTHS))
    found = log_probs(model, groups, SemIDTrie(matrix(semids), EOS))
    assert_equals_plain(
        found,
        groups,
        lambda row, place: over_catalogue(model, prompt_tokens(groups, row), [(22,), (20,)][place], semids),
    )


def test_an_item_outside_the_catalogue_is_an_error():
    model, trie = tiny_model(), SemIDTrie(matrix([(20, 21), (22, 23)]), EOS)
    with pytest.raises(ValueError, match="token 23 continues no Semantic ID of the catalogue"):
        log_probs(model, grouped([[[20, 23], [22, 23]]], [4]), trie)


def test_groups_of_rows():
    _, _, _, _, groups = case(0)
    ids, mask = rows_of(groups)
    ids, mask = (torch.nn.functional.pad(part, (4, 0)) for part in (ids, mask))  # padding of longer prompts elsewhere
    again = Groups.of(ids, mask, groups.completions.shape[2], groups.completions.shape[1])
    assert all(ours.equal(theirs) for ours, theirs in zip(again, groups))
    alone = Groups.of(ids, mask, groups.completions.shape[2], 1)
    assert alone.completions.shape[:2] == (15, 1) and alone.prompts.shape == (15, max(LENGTHS))


def test_rows_that_are_no_groups_are_refused():
    _, _, _, _, groups = case(0)
    ids, mask = rows_of(groups)
    width = groups.completions.shape[2]
    with pytest.raises(ValueError, match="15 completions are no whole groups of 4"):
        Groups.of(ids, mask, width, 4)
    order = torch.arange(15).view(3, 5).T.flatten()
    with pytest.raises(ValueError, match="do not stand side by side in groups of 5"):
        Groups.of(ids[order], mask[order], width, 5)
    # A prompt that is the end of another is another prompt.
    end = mask.clone()
    end[1, :8] = 0
    with pytest.raises(ValueError, match="side by side"):
        Groups.of(ids * end, end, width, 5)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_takes_no_mask_is_refused(attention):
    model = tiny_model()
    check_model(model)
    model.config._attn_implementation = attention
    with pytest.raises(ValueError, match=f"{attention} takes no mask of our own: set attn_implementation: sdpa"):
        check_model(model)


def test_a_sliding_window_is_refused():
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    with pytest.raises(ValueError, match="cannot share the prompt of a group: .*sliding"):
        check_model(Qwen2ForCausalLM(config))
