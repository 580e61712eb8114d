"""Groups of rollouts: what each kind holds, log positives, and Semantic IDs as completions."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from decoding.reference_search import EOS, matrix, prompts, random_semids, tiny_model
from rl_small import LENGTHS, distribution, written

from llmrec.decoding import SemIDTrie, tree_beam_search
from llmrec.rl import PolicyArguments, sample_without_replacement
from llmrec.rl.groups import RollOut
from llmrec.rl.rollout import Rollouts, completions, roll_out, semids_of, with_positives

SEEDS = [11, 12, 13]
IDS, MASK = prompts(LENGTHS)
PROMPTS = [ids[mask.bool()].tolist() for ids, mask in zip(IDS, MASK)]


def case(seed: int = 0, rows: int = 40):
    semids = random_semids(seed, rows=rows, ragged=True)
    return tiny_model(seed=seed), semids, SemIDTrie(matrix(semids), EOS)


def named(rollouts: Rollouts, semids: list[tuple], trie: SemIDTrie) -> list[list[tuple]]:
    """The Semantic IDs of each group, by their tokens and by their leaves alike."""
    by_tokens = [[tuple(t for t in one if t >= 0) for one in group] for group in rollouts.tokens.tolist()]
    assert by_tokens == [[semids[i] for i in trie.order[leaves].tolist()] for leaves in rollouts.leaves]
    return by_tokens


@pytest.mark.parametrize("seed", range(3))
def test_beams_are_those_of_the_search(seed):
    model, semids, trie = case(seed)
    found = roll_out(model.train(), PROMPTS, trie, 6, PolicyArguments(), SEEDS)
    assert model.training, "the mode is as before"
    model.eval()
    wanted = tree_beam_search(model, IDS, MASK, trie, 6, normalize="catalogue")
    assert found.tokens.equal(wanted.tokens) and found.leaves.equal(wanted.low)
    assert found.weights.equal(torch.full((3, 6), 1 / 6))
    for row, group in enumerate(named(found, semids, trie)):
        p = dict(zip(semids, distribution(model, PROMPTS[row], semids)))
        assert float(found.mass[row]) == pytest.approx(sum(p[semid] for semid in group), abs=1e-5)
        assert [p[semid] for semid in group] == sorted((p[semid] for semid in group), reverse=True)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_samples_are_those_of_the_seeds(temperature):
    model, semids, trie = case(1)
    found = roll_out(model, PROMPTS, trie, 6, PolicyArguments("sample"), SEEDS, temperature)
    wanted = sample_without_replacement(model, IDS, MASK, trie, 6, SEEDS, temperature)
    assert found.tokens.equal(wanted.tokens) and found.weights.equal(wanted.weights)
    torch.testing.assert_close(found.mass, wanted.log_probs.exp().sum(1))
    assert all(len(set(group)) == 6 for group in named(found, semids, trie))
    one = roll_out(model, PROMPTS[1:2], trie, 6, PolicyArguments("sample"), SEEDS[1:2], temperature)
    assert one.tokens.equal(found.tokens[1:2]), "whatever else is drawn with it"


@pytest.mark.parametrize(("share", "beams"), [(0.5, 4), (0.25, 2), (0.01, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_mixed_groups_are_the_best_and_then_draws_that_are_new(seed, share, beams):
    model, semids, trie = case(seed)
    found = named(roll_out(model, PROMPTS, trie, 8, PolicyArguments("mixed", share), SEEDS), semids, trie)
    best = named(roll_out(model, PROMPTS, trie, 8, PolicyArguments("beam"), SEEDS), semids, trie)
    drawn = named(roll_out(model, PROMPTS, trie, 8, PolicyArguments("sample"), SEEDS), semids, trie)
    for group, first, sample in zip(found, best, drawn):
        new = [semid for semid in sample if semid not in first[:beams]]
        assert group == first[:beams] + new[: 8 - beams]
        assert len(set(group)) == 8


@pytest.mark.parametrize("kind", ["beam", "sample", "mixed"])
def test_a_group_of_the_whole_catalogue_holds_all_the_mass(kind):
    model, semids, trie = case(2, rows=12)
    found = roll_out(model, PROMPTS, trie, trie.num_leaves, PolicyArguments(kind), SEEDS)
    assert all(set(group) == set(semids) for group in named(found, semids, trie))
    torch.testing.assert_close(found.mass, torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3))


@pytest.mark.parametrize("seed", range(5))
def test_positives_stand_in_the_last_places_once_and_spare_each_other(seed):
    model, semids, trie = case(seed)
    rng = np.random.default_rng(seed)
    before = roll_out(model, PROMPTS, trie, 6, PolicyArguments(), SEEDS)
    groups = named(before, semids, trie)
    # Some are there already, one is asked for twice.
    positives = [
        [int(rng.integers(len(semids))), semids.index(group[-1]), *rng.integers(len(semids), size=2).tolist()]
        for group in groups
    ]
    positives[0][2] = positives[0][0]
    after = with_positives(before, trie, positives)
    assert named(before, semids, trie) == groups, "the rollouts are a copy"
    assert after.mass.equal(before.mass) and after.weights.equal(before.weights)
    for group, old, rows in zip(named(after, semids, trie), groups, positives):
        wanted = {semids[row] for row in rows}
        assert all(group.count(semid) == 1 for semid in wanted) and len(set(group)) == 6
        missing = [semid for semid in dict.fromkeys(semids[row] for row in rows) if semid not in old]
        free = [place for place in reversed(range(6)) if old[place] not in wanted]
        expected = dict(zip(free, missing))
        assert group == [expected.get(place, semid) for place, semid in enumerate(old)]


def test_positives_that_share_a_semantic_id_are_one():
    """Two items of the log with the Semantic ID (22, 23): rows of it are interchangeable."""
    semids = [(20, 21), (22, 23), (22, 24), (22, 23)]
    trie = SemIDTrie(matrix(semids), EOS)
    rollouts = Rollouts(
        torch.tensor([[[20, 21], [22, 24]]]), torch.tensor([[0, 3]]), torch.full((1, 2), 0.5), torch.ones(1)
    )
    after = with_positives(rollouts, trie, [[1, 3]])
    assert after.tokens.tolist() == [[[20, 21], [22, 23]]] and after.leaves.tolist() == [[0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_every_row_leads_to_its_leaf_and_back(seed):
    semids = random_semids(seed, rows=60, depth=4, ragged=True, width=5)
    semids += semids[:10]  # items that share one
    trie = SemIDTrie(matrix(semids), EOS)
    leaves, tokens = (part.tolist() for part in semids_of(trie, range(len(semids))))
    for row, leaf in enumerate(leaves):
        assert tokens[row] == matrix(semids)[row].tolist()
        assert semids[int(trie.order[leaf])] == semids[row]
        assert leaf == leaves[semids.index(semids[row])], "rows of one Semantic ID have one leaf"
    assert len(set(leaves)) == trie.num_leaves


@pytest.mark.parametrize("seed", range(4))
def test_completions_say_an_end_that_was_a_choice(seed):
    """The EOS token stands after an item that others begin with, after no other, and at most once."""
    semids = random_semids(seed, rows=60, depth=4, ragged=True, width=4)
    trie = SemIDTrie(matrix(semids), EOS)
    found = completions(torch.from_numpy(matrix(semids)), trie)
    assert found == [written(semid, semids) for semid in semids]
    ended = [tokens[-1] == EOS for tokens in found]
    assert any(ended) and not all(ended)
    begins_another = [
        any(len(other) > len(semid) and other[: len(semid)] == semid for other in semids) for semid in semids
    ]
    assert ended == begins_another


def test_completions_without_an_eos_token():
    trie = SemIDTrie(matrix([(20, 21), (20, 22), (23,)]))
    assert completions(torch.tensor([[23, -1], [20, 22]]), trie) == [[23], [20, 22]]


def test_seeds_differ_by_run_step_try_and_row():
    parts = list(itertools.product(range(3), range(5), range(2), range(40)))
    seeds = [RollOut.seed(*one) for one in parts]
    assert len(set(seeds)) == len(parts) and all(seed >= 0 for seed in seeds)
    assert seeds == [RollOut.seed(*one) for one in parts]
    assert RollOut.seed(1, 2, 0, 3) != RollOut.seed(2, 1, 0, 3)


@pytest.mark.parametrize(
    ("changes", "group", "said"),
    [
        ({"rollout": "beams"}, 4, "rollout: 'beams' is not one of beam, sample, mixed"),
        ({}, 8, "num_generations: 8 distinct rollouts of a catalogue of 7 Semantic IDs"),
        ({"log_positives": 4}, 4, "log_positives: 4 of a group of 4; leave at least one rollout"),
        ({"log_positives": -1}, 4, "log_positives: -1 of a group"),
        ({"beam_share": 0.0}, 4, "beam_share: 0.0 is not between 0 and 1"),
        ({"beam_share": 1.0}, 4, "beam_share: 1.0 is not between 0 and 1; for one alone use beam or sample"),
    ],
)
def test_settings_are_refused_by_name(changes, group, said):
    trie = SemIDTrie(matrix([(20 + n, 30) for n in range(7)]), EOS)
    arguments = PolicyArguments()
    arguments.check(7, trie)
    with pytest.raises(ValueError, match=f"^{said}"):
        dataclasses.replace(arguments, **changes).check(group, trie)
