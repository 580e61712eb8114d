"""The logits processor behind both interfaces of vLLM, and in a real engine."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoding.reference_search import assert_same, found, matrix, reference_search, step_scores
from decoding.reference_states import Case, expected_row
from processor_simulation import Simulation, prompts_of
from serving_folders import random_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import tree_beam_search
from llmrec.decoding.semid_states import SemIDRequest
from llmrec.decoding.trie import SemIDTrie
from llmrec.models.folder import SEMIDS

DEPTH = 4
PROCESSOR = "llmrec.serving.vllm.semid_processor:SemIDProcessor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp("generate") / "model", depth=DEPTH, num_items=80, prompt="next_item")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def trie(folder, tokenizer):
    return SemIDTrie.from_index(SemIDIndex.load(folder / SEMIDS), tokenizer)


@pytest.fixture(scope="module")
def case(folder, tokenizer):
    index = SemIDIndex.load(folder / SEMIDS)
    semids = {tuple(tokenizer.convert_tokens_to_ids(index.tokens_of_row(row))) for row in range(len(index))}
    ids = tokenizer.convert_tokens_to_ids(index.tokens)
    rng = np.random.default_rng(0)
    removed = {tuple(rng.choice(ids, 3).tolist()) for _ in range(20)} - semids
    return Case(semids, sorted(removed), set(ids), eos=tokenizer.eos_token_id)


# Both interfaces, without an engine


@pytest.mark.vllm
@pytest.mark.parametrize("seed", range(6))
def test_both_interfaces_equal_plain_python(folder, case, seed):
    simulation = Simulation(folder, case, 6, seed, ["inside", "next"][seed % 2])
    for _ in range(40):
        simulation.change()
        if simulation.rows:
            simulation.step()


@pytest.mark.vllm
@pytest.mark.parametrize("seed", range(2))
def test_drafts_of_speculative_decoding_see_what_stands_before_them(folder, case, seed):
    simulation = Simulation(folder, case, 4, seed, ["inside", "next"][seed % 2], drafts=2)
    rng = simulation.rng
    while len(simulation.rows) < 4:
        simulation.change()
    for live in simulation.rows:
        live.fed = 1
    for _ in range(12):
        rows, local, ends, fed, drafts = [], [], [], [], []
        for live in simulation.rows:
            live.drafts = rng.choice([*case.tokens, 5, 6, 7], rng.integers(0, 3)).tolist()
            everything = live.prompt + live.output
            for place in range(len(live.drafts) + 1):
                rows.append(live)
                local.append(place)
                ends.append(len(everything) + place)
                fed.append([everything[-1], *live.drafts][place])
                drafts.append(live.drafts[:place])
        logits = torch.from_numpy(rng.normal(size=(len(rows), simulation.vocabulary)).astype(np.float32))
        masked = simulation.apply_v2(logits, rows, local, ends, fed)
        for row, live in enumerate(rows):
            torch.testing.assert_close(masked[row], simulation.expected(live, logits[row], tuple(drafts[row])))
        for live in simulation.rows:  # some are accepted, then one token is sampled
            for token in [*live.drafts[: rng.integers(0, len(live.drafts) + 1)], int(rng.choice(list(case.tokens)))]:
                simulation.commit(live, token)


@pytest.mark.vllm
def test_tokens_that_vllm_takes_back_are_forgotten(folder, case):
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    simulation = Simulation(folder, case, 2, 0, "next")
    semid = max(case.semids, key=len)
    output = list(semid[:3])
    simulation.v1.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [5, 6], output)], []))
    simulation.v1.apply(torch.zeros(1, simulation.vocabulary))
    del output[1:]
    masked = simulation.v1.apply(torch.zeros(1, simulation.vocabulary))[0]
    expected = expected_row(
        torch.zeros(simulation.vocabulary), SemIDRequest("next"), [5, 6], output, case, True, False, 16
    )
    torch.testing.assert_close(masked, expected)


@pytest.mark.vllm
def test_wrong_settings_of_an_engine_are_refused(folder, case, tmp_path):
    def start(settings, model=folder):
        from llmrec.serving.vllm.semid_processor import SemIDProcessor

        config = SimpleNamespace(
            model_config=SimpleNamespace(model=str(model), logprobs_mode="raw_logprobs", max_model_len=64),
            scheduler_config=SimpleNamespace(max_num_seqs=2),
            additional_config={"semid": settings},
        )
        return SemIDProcessor(config, torch.device("cpu"), False)

    with pytest.raises(ValueError, match="default 'tail' is not one of inside, never, next"):
        start({"default": "tail"})
    with pytest.raises(ValueError, match="normalize 'no' is not one of"):
        start({"normalize": "no"})
    with pytest.raises(ValueError, match="unknown field 'mode'"):
        start({"mode": "next"})
    with pytest.raises(ValueError, match="no llmrec model folder"):
        start({}, tmp_path)


# A real engine


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture(scope="module")
def engine(folder):
    from vllm import LLM

    engine = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        distributed_executor_backend="uni",
        logits_processors=[PROCESSOR],
        logprobs_mode="processed_logits",
        max_logprobs=200,
        additional_config={"semid": {"default": "next"}},
    )
    yield engine
    del engine
    gc.collect()


def tokens_of(prompts: list[list[int]]) -> list[dict]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def beams_of(answer, prompt: list[int], eos: int) -> list[tuple[tuple, float]]:
    """A beam search of vLLM in the form of `reference_search`; -inf is what fills a beam that has too few SemIDs."""
    beams = [(beam.tokens[len(prompt) :], beam.cum_logprob) for beam in answer.sequences]
    return [(tuple(t for t in tokens if t != eos), score) for tokens, score in beams if score > -np.inf]


def tree_lists(model, prompts: list[list[int]], trie: SemIDTrie, num_beams: int) -> list[list[tuple]]:
    ids = [torch.tensor([prompt]) for prompt in prompts]
    return [found(tree_beam_search(model, one, torch.ones_like(one), trie, num_beams), 0) for one in ids]


def stock_search(model, prompt: list[int], semids: set, num_beams: int) -> list[tuple[tuple, float]]:
    """`reference_search` with the one rule in which vLLM's own beam search differs from that of transformers: a beam
    that ends is kept even where `num_beams` better ones have not ended yet."""
    running, finished = [((), 0.0)], []
    for _ in range(DEPTH):
        candidates = []
        steps = step_scores(model, prompt, [prefix for prefix, _ in running], semids, "vocabulary")
        for (prefix, score), following in zip(running, steps):
            finished += [(prefix, score + step) for token, step in following.items() if token == -1]
            candidates += [((*prefix, token), score + step) for token, step in following.items() if token != -1]
        running = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return sorted(finished + running, key=lambda beam: -beam[1])[:num_beams]


@pytest.mark.vllm
@pytest.mark.parametrize("num_beams", [10, 100])
def test_beam_search_over_a_ragged_catalogue(engine, model, trie, case, monkeypatch, num_beams):
    from vllm.sampling_params import BeamSearchParams

    monkeypatch.setattr("decoding.reference_search.EOS", case.eos)
    prompts = prompts_of(case, 6 if num_beams == 10 else 1)
    params = BeamSearchParams(beam_width=num_beams, max_tokens=DEPTH, length_penalty=0.0)
    answers = engine.beam_search(tokens_of(prompts), params)
    for prompt, answer, tree in zip(prompts, answers, tree_lists(model, prompts, trie, num_beams)):
        ours = beams_of(answer, prompt, case.eos)
        assert_same(ours, stock_search(model, prompt, case.semids, num_beams))
        assert len(ours) == min(num_beams, len(case.semids))
        if num_beams > len(case.semids):
            assert_same(ours, tree)
            assert_same(ours, reference_search(model, prompt, sorted(case.semids), num_beams))
        else:  # what vLLM's rule adds is better than what it pushes out
            kept = set(dict(tree))
            assert [semid for semid, _ in ours if semid in kept] == [s for s, _ in tree][: len(kept & set(dict(ours)))]
            assert all(mine[1] >= other[1] - 1e-4 for mine, other in zip(ours, tree))


@pytest.mark.vllm
def test_sampled_answers_are_items(engine, case):
    from vllm import SamplingParams

    prompts = prompts_of(case, 8, seed=1)
    answers = engine.generate(tokens_of(prompts), SamplingParams(n=20, max_tokens=DEPTH + 1, logprobs=0))
    tokens = [tuple(output.token_ids) for answer in answers for output in answer.outputs]
    assert len(tokens) == 160 and len(set(tokens)) > 20
    for output in tokens:
        assert (output[:-1] if output[-1] == case.eos else output) in case.semids


def semids_in(tokens: list[int], case: Case, first: set) -> tuple[list[tuple], list[int]]:
    """The SemIDs of a text, each from a token of the first level on, and SemID tokens that belong to none."""
    semids, strays, current = [], [], None
    for token in tokens:
        if token in first:
            semids.append([token])
            current = semids[-1]
        elif token not in case.tokens:
            current = None
        elif current is not None:
            current.append(token)
        else:
            strays.append(token)
    return [tuple(semid) for semid in semids], strays


@pytest.mark.vllm
def test_every_semid_in_a_text_is_an_item(engine, model, case):
    from vllm import SamplingParams

    prompts = prompts_of(case, 16, seed=2)
    first = {semid[0] for semid in case.semids}
    inside = SamplingParams(max_tokens=200, ignore_eos=True, seed=0, extra_args={"semid": "inside"})
    count = 0
    for answer in engine.generate(tokens_of(prompts), inside):
        tokens = list(answer.outputs[0].token_ids)
        semids, strays = semids_in(tokens, case, first)
        assert set(semids) <= case.semids and not strays
        assert any(token not in case.tokens for token in tokens)
        count += len(semids)
    assert count > 20
    never = SamplingParams(max_tokens=200, ignore_eos=True, seed=0, extra_args={"semid": "never"})
    for answer in engine.generate(tokens_of(prompts), never):
        assert case.tokens.isdisjoint(answer.outputs[0].token_ids)
    torch.manual_seed(0)  # the same without the processor
    free = model.generate(torch.tensor([prompts[0]]), max_new_tokens=200, min_new_tokens=200, do_sample=True, top_k=0)
    semids, strays = semids_in(free[0, len(prompts[0]) :].tolist(), case, first)
    assert strays and set(semids[:-1]) - case.semids


@pytest.mark.vllm
def test_text_without_semids_is_what_the_model_says(engine, model, case):
    """Beside rows in a SemID, and with the model's log-probabilities."""
    from vllm import SamplingParams

    prompts = prompts_of(case, 40, seed=3)
    inside = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=1, extra_args={"semid": "inside"})
    following = SamplingParams(temperature=0.0, max_tokens=6)
    answers = engine.generate(tokens_of(prompts) * 2, [inside] * len(prompts) + [following] * len(prompts))
    compared = 0
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, max_new_tokens=6, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
        )
        text = output.sequences[0, len(prompt) :].tolist()
        if case.tokens.isdisjoint(text):
            compared += 1
            assert list(answer.outputs[0].token_ids) == text
            scores = [step[token].logprob for step, token in zip(answer.outputs[0].logprobs, text)]
            expected = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(output.logits, text)]
            np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert compared >= 5
    for answer in answers[len(prompts) :]:
        tokens = tuple(answer.outputs[0].token_ids)
        assert (tokens[:-1] if tokens[-1] == case.eos else tokens) in case.semids


@pytest.mark.vllm
def test_an_answer_goes_on_where_its_start_says(engine, case):
    from vllm import SamplingParams

    prompt = prompts_of(case, 1, seed=4)[0]
    semid = max(case.semids, key=len)
    ids = [*prompt, *semid[:2]]
    settings = SamplingParams(n=8, max_tokens=DEPTH, extra_args={"semid": "next", "semid_start": len(prompt)})
    for output in engine.generate(tokens_of([ids]), settings)[0].outputs:
        answer = (*semid[:2], *(token for token in output.token_ids if token != case.eos))
        assert answer in case.semids
    over = SamplingParams(max_tokens=3, logprobs=1, extra_args={"semid_start": len(prompt)})
    output = engine.generate(tokens_of([[*prompt, *semid]]), over)[0].outputs[0]
    assert list(output.token_ids) == [case.eos] and output.logprobs[0][case.eos].logprob == 0


@pytest.mark.vllm
def test_wrong_requests_are_refused_and_the_engine_goes_on(engine, case):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    prompt = tokens_of(prompts_of(case, 1))
    for extra in ({"semid": "tail"}, {"semid_start": "x"}, {"semid_version": -1}, {"semid_strat": 1}):
        with pytest.raises(VLLMValidationError, match=next(iter(extra))):
            engine.generate(prompt, SamplingParams(max_tokens=2, extra_args=extra))
    unknown = SamplingParams(max_tokens=2, extra_args={"semid_version": 99})
    assert len(engine.generate(prompt, unknown)[0].outputs[0].token_ids) == 2


@pytest.mark.vllm
def test_catalogue_versions(folder, engine, model, case, tokenizer):
    """The last test of this engine: requests without a number get the newest version from here on."""
    from vllm import SamplingParams
    from vllm.sampling_params import BeamSearchParams

    from llmrec.serving.vllm import catalogues

    index = SemIDIndex.load(folder / SEMIDS)
    odd = sorted({index.item_ids[row] for row in range(len(index)) if index.lengths[row] != 3})
    record = {"number": 1, "parent": 0, "time": "2026-01-01T00:00:00.000+00:00", "rollback_of": None}
    catalogues.of(engine.llm_engine.vllm_config).load({**record, "remove": odd, "put": []})
    rows = [row for row in range(len(index)) if index.item_ids[row] not in odd]
    left = {tuple(tokenizer.convert_tokens_to_ids(index.tokens_of_row(row))) for row in rows}
    assert 10 < len(left) < len(case.semids)

    # SemIDs of one length: vLLM's beam search gives the lists of transformers
    prompts = prompts_of(case, 8, seed=5)
    trie = SemIDTrie(matrix(sorted(left)), case.eos)
    params = BeamSearchParams(beam_width=10, max_tokens=3, length_penalty=0.0)
    answers = engine.beam_search(tokens_of(prompts), params)
    for prompt, answer, tree in zip(prompts, answers, tree_lists(model, prompts, trie, 10)):
        assert_same(beams_of(answer, prompt, case.eos), tree)

    # both versions in one batch
    old = SamplingParams(n=20, max_tokens=DEPTH + 1, extra_args={"semid_version": 0})
    new = SamplingParams(n=20, max_tokens=DEPTH + 1)
    answers = engine.generate(tokens_of(prompts) * 2, [old] * len(prompts) + [new] * len(prompts))
    found = [
        {tuple(token for token in output.token_ids if token != case.eos) for a in half for output in a.outputs}
        for half in (answers[: len(prompts)], answers[len(prompts) :])
    ]
    assert found[0] <= case.semids and found[0] - left
    assert found[1] <= left
