"""The paths of a GPU, walked on one that is none (`scripts/pretend_gpu.py`): what stays behind on the CPU raises, what
waits for the device is counted, and what comes out is what the CPU says."""

import copy

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, MixedDevices, PretendGPU
from reference_search import matrix, prompts, random_semids
from reference_search import tiny_model as tiny_decoder
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.decoding import SemIDLogitsProcessor, constrained_generate, search_items, tree_beam_search
from llmrec.decoding.semid_states import CatalogueTokens, SemIDRequest, SemIDStates
from llmrec.decoding.trie import SemIDTrie
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers.residual.rq_vae import RQVAEModule
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.ranker import train_counts
from llmrec.recommenders.sasrec import SASRec
from llmrec.rl.log_probs import Groups, log_probs
from llmrec.rl.sampling import sample_without_replacement

EOS = 2


@pytest.fixture
def gpu():
    with PretendGPU() as gpu, torch.no_grad():
        yield gpu


def there(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(GPU, non_blocking=True)


def moved(model):
    return copy.deepcopy(model).to(GPU)


def test_what_stays_behind_is_found_and_what_waits_is_counted(gpu):
    x = torch.arange(6, device=GPU).view(2, 3)
    with pytest.raises(MixedDevices, match="add"):
        x + torch.ones(2, 3)
    x[0] += 1
    assert not gpu.syncs and gpu.launches > 1
    asked = [
        lambda: x.sum().item(),
        lambda: bool((x > 2).any()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: torch.tensor([1, 2], device=GPU),
    ]
    for number, one in enumerate(asked, 1):
        one()
        assert len(gpu.syncs) == number and "test_devices.py" in gpu.syncs[-1]
    assert x.tolist() == [[1, 2, 3], [3, 4, 5]]
    chosen = torch.accelerator.current_accelerator()
    assert chosen is None or chosen.type != GPU.type  # no other test may choose it


@pytest.mark.parametrize(("ragged", "normalize"), [(False, "vocabulary"), (True, "catalogue")])
def test_a_search_waits_once_whatever_its_levels_and_filters(gpu, ragged, normalize):
    model, semids = tiny_decoder(), matrix(random_semids(0, ragged=ragged))
    (ids, mask), rows = prompts([5, 3, 4]), len(semids)
    masks, denied = [np.arange(rows) % 2 == 0] * 2 + [None], [np.arange(3)] * 3
    asked = {"k": [8] * 3, "num_beams": 8, "masks": masks, "denied": denied, "normalize": normalize}
    expected = search_items(model, ids, mask, SemIDTrie(semids, EOS), np.arange(rows), **asked)
    model, trie, ids = moved(model), SemIDTrie(semids, EOS).to(GPU), there(ids)
    search_items(model, ids, mask, trie, np.arange(rows), **asked)  # the first search of a model checks itself
    gpu.syncs.clear()
    found = search_items(model, ids, mask, trie, np.arange(rows), **asked)
    assert [[hit.item for hit in one] for one in found] == [[hit.item for hit in one] for one in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in other], atol=1e-4)
    assert len(gpu.syncs) == 1, gpu.syncs
    search_items(model, ids, there(mask), trie, np.arange(rows), **asked)
    assert len(gpu.syncs) == 1 + 2, gpu.syncs  # a mask there is asked for the lengths


def test_equal_scores_go_to_the_semid_that_sorts_first_there_too(gpu):
    semids = matrix([(first, second) for first in range(3, 7) for second in range(10, 14)])
    model = tiny_decoder()
    model.get_output_embeddings().weight.zero_()
    ids, mask = prompts([4])
    expected = tree_beam_search(model, ids, mask, SemIDTrie(semids, EOS), 6)
    found = tree_beam_search(moved(model), there(ids), mask, SemIDTrie(semids, EOS).to(GPU), 6)
    assert found.tokens.tolist() == expected.tokens.tolist()


def test_logits_that_are_no_numbers_are_refused_there_too(gpu):
    model, (ids, mask) = tiny_decoder(), prompts([4])
    model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not numbers"):
        tree_beam_search(moved(model), there(ids), mask, SemIDTrie(matrix(random_semids(0)), EOS).to(GPU), 4)


def test_the_processor_waits_for_nothing_of_its_own(gpu):
    semids, ids = matrix(random_semids(0, ragged=True)), torch.randint(3, 9, (4, 6))
    ids[:, 5] = torch.from_numpy(semids[:4, 0])
    scores = torch.randn(4, 100)
    expected = SemIDLogitsProcessor(SemIDTrie(semids, EOS), 5)(ids, scores)
    processor, ids, scores = SemIDLogitsProcessor(SemIDTrie(semids, EOS).to(GPU), 5), there(ids), there(scores)
    gpu.syncs.clear()
    found = processor(ids, scores)
    assert not gpu.syncs
    torch.testing.assert_close(found.cpu(), expected)


def test_generate_runs_there(gpu):
    model, (ids, mask), semids = tiny_decoder(), prompts([4, 4]), matrix(random_semids(0))
    expected = constrained_generate(model, ids, mask, SemIDTrie(semids, EOS), 3)
    found = constrained_generate(moved(model), there(ids), there(mask), SemIDTrie(semids, EOS).to(GPU), 3)
    assert found.sequences.tolist() == expected.sequences.tolist()


def test_free_text_waits_for_nothing_after_its_beginning(gpu):
    semids = matrix(random_semids(0, ragged=True))
    logits, tokens = [], torch.tensor([3, 4])
    for device in ("cpu", GPU):
        states = SemIDStates(2, device)
        catalogue = CatalogueTokens(SemIDTrie(semids, EOS)).to(device)
        asked = [catalogue.prefix([5, int(semids[0, 0])]), catalogue.prefix([5, 6])]
        states.begin([0, 1], [SemIDRequest()] * 2, asked, [catalogue] * 2, [False] * 2, [9] * 2)
        slots, known = torch.arange(2, device=device), states.catalogues_of([0, 1])
        given, read = torch.ones_like(slots, dtype=torch.bool), tokens.to(device)
        scores = torch.arange(200.0).view(2, 100).to(device)
        gpu.syncs.clear()
        place = states.places_of(slots)
        states.constrain(scores, slots, place, known)
        states.keep(slots, states.read(place, slots, read, given, known))
        assert not gpu.syncs
        logits.append(scores.cpu())
    torch.testing.assert_close(*logits)


def test_a_recommender_goes_where_its_model_goes(gpu):
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    settings = RecommenderConfig(load_prompt("next_item").to_dict(), num_beams=10)
    recommender = LLMRecommender(model.eval(), tokenizer, index, data.items, settings)
    histories = data.test["history"].to_pylist()[:5]
    expected = recommender.recommend(histories, k=5)
    recommender.to(GPU).recommend(histories, k=5)
    gpu.syncs.clear()
    found = recommender.recommend(histories, k=5)
    assert len(gpu.syncs) == 1, gpu.syncs
    assert [[hit.item_id for hit in one] for one in found] == [[hit.item_id for hit in one] for one in expected]
    assert recommender.generate_text("explain", [{"history": histories[0], "about": histories[0][0]}], 4)


def test_rollouts_and_their_log_probabilities(gpu):
    model, semids = tiny_decoder(), matrix(random_semids(0))
    (ids, mask), results = prompts([5, 3]), []
    for device in ("cpu", GPU):
        on, trie = moved(model) if device == GPU else model, SemIDTrie(semids, EOS).to(device)
        drawn = sample_without_replacement(on, ids.to(device), mask.to(device), trie, 4, [0, 1])
        groups = Groups(ids.to(device), mask.bool().to(device), drawn.tokens, drawn.tokens >= 0)
        steps, _ = log_probs(on, groups, trie)
        torch.testing.assert_close(steps.sum(-1).cpu(), drawn.log_probs.cpu(), atol=1e-4, rtol=0)
        results.append((drawn.tokens.tolist(), steps.cpu()))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=0)


def test_networks_score_there(gpu):
    data = tiny_data()
    config = SASRecConfig(hidden_size=16)
    ranker = SASRec(SASRecModel(data.items.num_rows, config), data.items, train_counts(data), config)
    histories = [*data.test["history"].to_pylist()[:4], []]
    expected = ranker.recommend(histories, 5)
    ranker.model.to(GPU)
    gpu.syncs.clear()
    found = ranker.recommend(histories, 5)
    assert [[hit.item_id for hit in one] for one in found] == [[hit.item_id for hit in one] for one in expected]
    module, rows = RQVAEModule(8, [16], 4, [6, 6]), torch.randn(20, 8)
    for codebook in module.codebooks:
        codebook.normal_()
    codes = module(rows, 0.25).codes
    assert moved(module)(there(rows), 0.25).codes.tolist() == codes.tolist()
