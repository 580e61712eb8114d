"""The state machine against plain Python, on random catalogues: shared and separate codebooks, ragged, with removed
items in the prompts."""

import numpy as np
import pytest
import torch
from decoding.reference_states import EOS, Case, expected_row
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding.semid_states import MODES, CatalogueTokens, Prefix, SemIDRequest, SemIDStates
from llmrec.decoding.trie import SemIDTrie

VOCABULARY, CODES = 64, 4
TEXT = list(range(2, 10))


def random_case(seed: int) -> Case:
    """Codes may be missing at any level; levels share their tokens or not; some items were removed."""
    rng = np.random.default_rng(seed)
    depth, shared = int(rng.integers(1, 5)), seed % 2 == 0
    codes = rng.integers(0, CODES, (rng.integers(2, 30), depth))
    codes[1:][rng.random((len(codes) - 1, depth)) < 0.2] = -1
    codes = codes[(codes >= 0).any(1)]
    base = np.full(depth, 20) if shared else 20 + CODES * np.arange(depth)
    everything = sorted({tuple((base[held] + row[held]).tolist()) for row in codes for held in [row >= 0]})
    kept = [semid for semid in everything if rng.random() < 0.8] or everything
    matrix = np.full((len(kept), max(map(len, kept))), -1)
    for row, semid in enumerate(kept):
        matrix[row, : len(semid)] = semid
    levels = [start + np.arange(CODES) for start in base]
    catalogue = CatalogueTokens(SemIDTrie(matrix, EOS), levels)
    return Case(set(kept), sorted(set(everything) - set(kept)), {t for ids in levels for t in ids.tolist()}, catalogue)


def random_prompt(rng: np.random.Generator, case: Case) -> list[int]:
    prompt = rng.choice(TEXT, rng.integers(0, 4)).tolist()
    semids = [*case.semids, *case.removed]
    for _ in range(rng.integers(0, 4)):
        prompt += semids[rng.integers(len(semids))]
        prompt += [[], [], [int(rng.choice(TEXT))], [EOS]][rng.integers(4)]
    semid = semids[rng.integers(len(semids))]
    return prompt + list(semid[: rng.integers(0, len(semid) + 1)])


def random_request(rng: np.random.Generator, prompt: list[int]) -> SemIDRequest:
    mode = MODES[rng.choice(3, p=[0.4, 0.2, 0.4])]
    start = (
        int(rng.integers(max(0, len(prompt) - 2), len(prompt) + 2)) if mode == "next" and rng.random() < 0.3 else None
    )
    return SemIDRequest(mode, start, None, ["vocabulary", "catalogue"][rng.integers(2)])


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_row_equals_plain_python(seed):
    """Requests over two catalogues in one batch; slots are used again; what follows is mostly what is allowed."""
    rng = np.random.default_rng(seed)
    cases = [random_case(seed), random_case(seed + 1001)]
    stand_alone = bool(rng.integers(2))
    states = SemIDStates(6, "cpu", stand_alone)
    for _ in range(2):
        slots = rng.permutation(6)[:5].tolist()
        which = rng.integers(0, 2, 5).tolist()
        prompts = [random_prompt(rng, cases[c]) for c in which]
        requests = [random_request(rng, prompt) for prompt in prompts]
        reported = (rng.random(5) < 0.5).tolist()
        prefixes = [cases[c].catalogue.prefix(p, r.start) for c, p, r in zip(which, prompts, requests)]
        room = rng.integers(1, 12, 5).tolist()
        states.begin(slots, requests, prefixes, [cases[c].catalogue for c in which], reported, room)
        catalogues = states.catalogues_of(slots)
        index = torch.tensor([*slots, states.size])  # the last row is nobody's
        place = states.places_of(index)
        outputs = [[] for _ in slots]
        for _ in range(8):
            logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(int(rng.integers(1 << 30))))
            masked = logits.clone()
            states.constrain(masked, index, place, catalogues)
            assert masked[5].equal(logits[5])
            for row, (c, request, prompt, output) in enumerate(zip(which, requests, prompts, outputs)):
                rest = stand_alone, reported[row], room[row]
                expected = expected_row(logits[row], request, prompt, output, cases[c], *rest)
                torch.testing.assert_close(masked[row], expected, msg=f"{seed} {request} {prompt} {output}")
            held = torch.tensor([*(rng.random(5) < 0.9).tolist(), True])
            tokens = [int(rng.choice(row.isfinite().nonzero()[:, 0])) for row in masked[:5]]
            tokens = [int(rng.integers(VOCABULARY)) if rng.random() < 0.1 else token for token in tokens]
            place = states.read(place, index, torch.tensor([*tokens, 0]), held, catalogues)
            for output, token, told in zip(outputs, tokens, held.tolist()):
                if told:
                    output.append(token)
        states.end(slots[:2])


def test_a_prompt_is_read_from_its_last_certain_beginning_on():
    trie = SemIDTrie(np.array([[20, 24], [21, 25], [22, -1]]), EOS)
    separate = CatalogueTokens(trie, [np.arange(20, 24), np.arange(24, 28)])
    assert separate.prefix([2, 20, 24, 21]) == Prefix([21])
    assert separate.prefix([2, 21]) == Prefix([21], alone=True)
    assert separate.prefix([2, 20, 24, 3]) == Prefix([], alone=True)
    assert separate.prefix([2, 20, 24, EOS, EOS]) == Prefix([], over=True)
    assert separate.prefix([2, 20, 24, 21], start=1) == Prefix([20, 24, 21], answer=True)
    assert separate.prefix([2], start=5) == Prefix([], answer=True)
    shared = CatalogueTokens(trie, [np.arange(20, 28), np.arange(20, 28)])
    assert shared.prefix([2, 20, 24, 21]) == Prefix([20, 24, 21], alone=True)
    assert len(shared.prefix([20] * 10_000).tokens) < 1000
    assert CatalogueTokens(trie).prefix([23, 20, 24]) == Prefix([20, 24], alone=True)  # 23 is no token of the trie


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"semid": "tail"}, "semid 'tail' is not one of inside, never, next"),
        ({"semid": 1}, "semid 1 is not one of"),
        ({"semid": ["next"]}, r"semid \['next'\] is not one of"),
        ({"semid_start": -1}, "semid_start should be a whole number"),
        ({"semid_start": "3"}, "semid_start should be a whole number"),
        ({"semid_start": True}, "semid_start should be a whole number"),
        ({"semid_version": 1.5}, "semid_version should be a whole number"),
        ({"semid_normalize": "softmax"}, "semid_normalize 'softmax' is not one of"),
        ({"semid_strat": 3}, "semid_strat is no field"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SemIDRequest.of(fields)


def test_a_request_takes_what_it_does_not_say_from_the_engine():
    assert SemIDRequest.of(None) == SemIDRequest("inside", None, None, "vocabulary")
    assert SemIDRequest.of({"other": 1}, "next", "catalogue") == SemIDRequest("next", None, None, "catalogue")
    fields = {"semid": "next", "semid_start": 4, "semid_version": 2, "semid_normalize": "vocabulary"}
    assert SemIDRequest.of(fields, normalize="catalogue") == SemIDRequest("next", 4, 2, "vocabulary")


def test_a_trie_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no eos_token_id"):
        CatalogueTokens(SemIDTrie(np.array([[20, 24]])))


def test_catalogues_are_kept_as_long_as_a_slot_uses_them():
    states = SemIDStates(2, "cpu")
    first, second = (CatalogueTokens(SemIDTrie(np.array([[20, token]]), EOS)) for token in (24, 25))
    for slot, catalogue in enumerate((first, second)):
        states.begin([slot], [SemIDRequest("next")], [Prefix([20], answer=True)], [catalogue], [False], [9])
    assert set(states.catalogues_of([0, 1]).values()) == {first, second}
    logits = torch.zeros(2, VOCABULARY)
    states.constrain(
        logits, torch.tensor([0, 1]), states.places_of(torch.tensor([0, 1])), states.catalogues_of([0, 1])
    )
    assert logits.isfinite().nonzero().tolist() == [[0, 24], [1, 25]]
    states.end([0])
    assert set(states.catalogues_of([0, 1]).values()) == {second} == set(states._catalogues.values())
