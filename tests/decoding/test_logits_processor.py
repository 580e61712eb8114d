import numpy as np
import pytest
import torch
from reference_search import (
    EOS,
    VOCABULARY,
    assert_same,
    found,
    matrix,
    next_tokens,
    prompts,
    random_semids,
    reference_search,
    tiny_model,
    with_adapters,
)
from transformers import GenerationConfig, LogitsProcessorList

from llmrec.decoding import tree_beam_search
from llmrec.decoding.logits_processor import SemIDLogitsProcessor, constrained_generate, generate_search
from llmrec.decoding.trie import RowFilter, SemIDTrie


def generated(output, prompt_length: int, row: int, num_beams: int):
    """One prompt of `generate`'s output in the form of `reference_search`."""
    rows = slice(row * num_beams, (row + 1) * num_beams)
    return [
        (tuple(token for token in tokens if token not in (EOS, 0)), score)
        for tokens, score in zip(
            output.sequences[rows, prompt_length:].tolist(), output.sequences_scores[rows].tolist()
        )
        if score > -1e8
    ]


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("seed", range(4))
def test_four_searches_agree(seed, normalize):
    ragged, num_beams = seed % 2 == 1, [3, 4, 6, 40][seed]
    model, semids = tiny_model(seed=seed, tied=seed < 2), random_semids(seed, ragged=ragged)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([8, 5, 10])
    tree = tree_beam_search(model, ids, mask, trie, num_beams, normalize=normalize)
    output = constrained_generate(model, ids, mask, trie, num_beams, normalize=normalize)
    prefixed = None
    if normalize == "vocabulary" and not ragged:
        prefixed = model.generate(
            ids,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=trie.depth,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=lambda _, tokens: next_tokens(tuple(tokens[10:].tolist()), set(semids)) or [EOS],
            return_dict_in_generate=True,
            output_scores=True,
        )
    for row in range(3):
        ours = found(tree, row)
        assert_same(generated(output, 10, row, num_beams), ours)
        assert_same(reference_search(model, ids[row][mask[row].bool()].tolist(), semids, num_beams, normalize), ours)
        if prefixed is not None:
            assert_same(generated(prefixed, 10, row, num_beams), ours)


@pytest.mark.parametrize("ragged", [False, True])
def test_filtered_generate_equals_the_filtered_tree(ragged):
    model, semids = tiny_model(seed=5), random_semids(5, rows=60, ragged=ragged)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([8, 5, 10], side="right")
    rng = np.random.default_rng(0)
    masks = [None, rng.random(len(semids)) < 0.3, np.zeros(len(semids), bool)]
    denied = [rng.integers(0, len(semids), 8), rng.integers(0, len(semids), 8), np.array([3])]
    for normalize in ("vocabulary", "catalogue"):
        tree = tree_beam_search(model, ids, mask, trie, 5, normalize=normalize, masks=masks, denied=denied)
        search = generate_search(model, ids, mask, trie, normalize)
        output = search(None, 5, RowFilter(trie, masks, denied))
        part = search(torch.tensor([1]), 5, RowFilter(trie, masks, denied).select([1]))
        for row in range(3):
            assert_same(found(output, row), found(tree, row))
        assert_same(found(part, 0), found(tree, 1))
        assert not found(output, 2)
        assert output.low.equal(tree.low) and output.high.equal(tree.high)


def test_an_instruct_models_own_settings_change_nothing():
    model, semids = tiny_model(), random_semids(0, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([8, 5])
    expected = constrained_generate(model, ids, mask, trie, 6)
    own = GenerationConfig(
        do_sample=True,
        top_k=20,
        top_p=0.8,
        temperature=0.6,
        repetition_penalty=1.05,
        no_repeat_ngram_size=2,
        length_penalty=2.0,
        early_stopping=True,
        min_new_tokens=3,
        bad_words_ids=[[21]],
        suppress_tokens=[22, 23],
        num_return_sequences=2,
        max_new_tokens=1,
        eos_token_id=[EOS, 24],
        pad_token_id=0,
    )
    model.generation_config = own
    for _ in range(2):
        output = constrained_generate(model, ids, mask, trie, 6)
        assert output.sequences.equal(expected.sequences)
        assert output.sequences_scores.equal(expected.sequences_scores)
    assert model.generation_config is own


def test_adapters_count_in_generate_too():
    model, semids = with_adapters(tied=True), random_semids(2, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([8, 5])
    model.get_base_model().generation_config.repetition_penalty = 1.5
    tree = tree_beam_search(model, ids, mask, trie, 4)
    output = constrained_generate(model, ids, mask, trie, 4)
    for row in range(2):
        assert_same(generated(output, 8, row, 4), found(tree, row))


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("known_length", [True, False])
def test_every_prefix_allows_what_brute_force_allows(normalize, known_length):
    semids = random_semids(1, rows=30, depth=3, ragged=True)
    trie, catalogue = SemIDTrie(matrix(semids), EOS), set(semids)
    logits = torch.randn(1, VOCABULARY)
    logits = logits.log_softmax(-1)
    prefixes = {semid[:length] for semid in semids for length in range(4)} | {(20, 20, 20, 20)}
    for prefix in prefixes | ({(20, 63), (63,)} if known_length else set()):
        processor = SemIDLogitsProcessor(trie, 4 if known_length else None, normalize)
        masked = processor(torch.tensor([[2, 3, 4, 5, *prefix]]), logits)[0]
        tokens = next_tokens(prefix, catalogue)
        if tokens in ([], [-1]):
            assert masked.isfinite().nonzero()[:, 0].tolist() == [EOS] and masked[EOS] == 0
            continue
        tokens = sorted(EOS if token == -1 else token for token in tokens)
        assert masked.isfinite().nonzero()[:, 0].tolist() == tokens
        expected = logits[0, tokens] - (logits[0, tokens].logsumexp(0) if normalize == "catalogue" else 0)
        torch.testing.assert_close(masked[tokens], expected)


def test_rows_of_one_call_may_stand_at_different_lengths():
    semids = random_semids(2, ragged=True)
    trie, catalogue = SemIDTrie(matrix(semids), EOS), set(semids)
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, semids[0][0]], [2, 3, *(semids[1] * 2)[:2]]])
    masked = SemIDLogitsProcessor(trie)(ids, torch.zeros(3, VOCABULARY))
    for row, prefix in enumerate([(), semids[0][:1], (semids[1] * 2)[:2]]):
        tokens = [EOS if token == -1 else token for token in next_tokens(prefix, catalogue)] or [EOS]
        assert masked[row].isfinite().nonzero()[:, 0].tolist() == sorted(tokens)


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
def test_samples_are_in_the_catalogue_and_follow_its_distribution(normalize):
    model, semids = tiny_model(seed=2), random_semids(2, rows=12, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([6])
    torch.manual_seed(0)
    output = constrained_generate(model, ids, mask, trie, 1, 4000, do_sample=True, normalize=normalize)
    sampled = [tuple(token for token in tokens if token != EOS) for tokens in output.sequences[:, 6:].tolist()]
    assert set(sampled) <= set(semids)
    best, score = reference_search(model, ids[0].tolist(), semids, len(semids), "catalogue")[0]
    assert sampled.count(best) / 4000 == pytest.approx(np.exp(score), abs=0.03)


def test_greedy_scores_are_sums_of_log_probabilities():
    model, semids = tiny_model(seed=3), random_semids(3, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([6, 4])
    for normalize in ("vocabulary", "catalogue"):
        output = generate_search(model, ids, mask, trie, normalize)(None, 1, None)
        for row in range(2):
            prompt = ids[row][mask[row].bool()].tolist()
            assert_same(found(output, row), reference_search(model, prompt, semids, 1, normalize))


def test_a_processor_keeps_no_state():
    model, semids = tiny_model(), random_semids(0)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([6, 4])
    processor = SemIDLogitsProcessor(trie)
    settings = {
        "num_beams": 4,
        "num_return_sequences": 4,
        "max_new_tokens": 3,
        "length_penalty": 0.0,
        "do_sample": False,
    }
    runs = [
        model.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([processor]), **settings)
        for _ in range(2)
    ]
    assert runs[0].equal(runs[1])
    expected = constrained_generate(model, ids, mask, trie, 4)
    assert runs[0].equal(expected.sequences)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="no eos_token_id"):
        SemIDLogitsProcessor(SemIDTrie(matrix([(20, 21)])))
    trie = SemIDTrie(matrix([(20, 21)]), EOS)
    with pytest.raises(ValueError, match="needs prompt_length"):
        SemIDLogitsProcessor(trie, allowed=RowFilter(trie, [None], None))
