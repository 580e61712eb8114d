"""Rollouts by an engine with weights of its own: in the trainer's process and over HTTP a run is the same run. The
engine here is a second model of transformers; tests/rl/test_vllm_rollouts.py has vLLM's."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from grpo_runs import DATA, base_folder, loaded, make_trainer, settings
from serving.http_fixtures import listening_app
from trl import ModelConfig

from llmrec.decoding import tree_beam_search
from llmrec.rl import PolicyArguments, prompt_rows
from llmrec.rl.rollout import padded
from llmrec.serving.http.settings import Settings
from llmrec.serving.rollouts.__main__ import create_app
from llmrec.serving.rollouts.remote import RemoteRollouts

LORA = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])


class SecondModel:
    """A `RolloutEngine` with nothing but the weights that it was given."""

    def __init__(self, folder):
        self.recommender, self.times = loaded(folder), 0
        for parameter in self.recommender.model.parameters():
            parameter.data.fill_(float("nan"))

    def take(self, weights) -> None:
        self.recommender.model.load_state_dict(dict(weights), strict=True)
        self.times += 1

    def search(self, prompts, size, normalize):
        trie = self.recommender.trie
        found = tree_beam_search(
            self.recommender.model.eval(), *padded(prompts, "left"), trie, size, normalize=normalize
        )
        return trie.host_order[found.low.numpy()].astype(np.int64), found.scores.numpy()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("engine") / "base")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("untied") / "base", tie_word_embeddings=False)


def trained(folder, output, engine=None, policy: dict | None = None, resume: str | None = None, **changes):
    fields = {"max_steps": 4, "learning_rate": 1e-2, **changes}
    more = {} if engine is None else {"engine": lambda: engine}
    model_args = fields.pop("model_args", None)
    more["train_dataset"] = fields.pop("rows", None)
    arguments = settings(output, use_vllm=engine is not None, **fields)
    trainer = make_trainer(folder, arguments, PolicyArguments(**policy or {}), model_args=model_args, **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def curve(trainer, name: str) -> list[float]:
    return [log[name] for log in trainer.state.log_history if name in log]


def assert_same_run(one, other) -> None:
    assert len(set(curve(one, "reward"))) > 1
    for name in ("reward", "rewards/prefix_match/mean", "grad_norm"):
        assert curve(one, name) == curve(other, name), name
    pairs = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)


@pytest.mark.parametrize("log_probs", ["catalogue", "vocabulary"])
@pytest.mark.parametrize("model_args", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_run_is_the_one_without_an_engine(base, untied, tmp_path, tied, model_args, log_probs):
    folder, policy = base if tied else untied, {"log_probs": log_probs, "log_positives": 1}
    asked = {"policy": policy, "model_args": model_args}
    engine = SecondModel(folder)
    with_engine = trained(folder, tmp_path, engine, **asked)
    assert_same_run(trained(folder, tmp_path, **asked), with_engine)
    assert engine.times == 4 and curve(with_engine, "rollout/staleness") == [0] * 4


def test_dead_groups_are_resampled_by_the_same_engine(base, tmp_path):
    asked = {"policy": {"dead_groups": "resample"}}
    engine = SecondModel(base)
    assert_same_run(trained(base, tmp_path, **asked), trained(base, tmp_path, engine, **asked))
    assert engine.times == 4


@pytest.mark.parametrize(
    ("saves", "stopped", "staleness"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, 3, [0, 1, 2, 0, 1, 2, 0, 1]),
        ({"save_strategy": "steps", "save_steps": 0.25}, 4, [0, 1, 0, 0, 0, 1, 0, 1]),
        ({"save_strategy": "epoch"}, 5, [0, 1, 2, 0, 1, 0, 0, 1]),
    ],
    ids=["steps", "a share of the run", "epochs"],
)
def test_weights_are_as_old_as_the_settings_say_and_a_resumed_run_has_the_same(
    base, tmp_path, saves, stopped, staleness
):
    few = prompt_rows(DATA, loaded(base)).select(range(10))  # an epoch has 5 steps
    asked = {"max_steps": 8, "rows": few}
    saving = {"policy": {"vllm_sync_steps": 3}, **asked, **saves}
    whole = trained(base, tmp_path, SecondModel(base), **saving)
    assert curve(whole, "rollout/staleness") == staleness
    resumed = trained(base, tmp_path, SecondModel(base), resume=str(tmp_path / f"checkpoint-{stopped}"), **saving)
    assert_same_run(whole, resumed)
    fresh = trained(base, tmp_path, SecondModel(base), **asked)
    assert curve(fresh, "rollout/mass") != curve(whole, "rollout/mass")


def test_iterations_see_the_weights_of_their_rollout(base, tmp_path):
    engine = SecondModel(base)
    asked = {"num_iterations": 2, "max_steps": 6}
    assert_same_run(trained(base, tmp_path, **asked), trained(base, tmp_path, engine, **asked))
    assert engine.times == 3


def test_the_arguments_of_the_caller_stay_as_they_are(base, tmp_path):
    arguments, plain = settings(tmp_path, use_vllm=True), settings(tmp_path, use_vllm=True)
    make_trainer(base, arguments, engine=lambda: SecondModel(base))
    plain.reward_weights = arguments.reward_weights  # which make_trainer sets
    assert arguments.to_dict() == plain.to_dict()


BAD = [
    ({}, {"vllm_sync_steps": 2}, "vllm_sync_steps: 2, but there is no engine"),
    ({"use_vllm": True}, {"rollout": "sample"}, "rollout: sample, but vLLM's engine searches beams"),
    ({"use_vllm": True}, {"rollout": "mixed"}, "rollout: mixed, but vLLM's engine searches beams"),
    ({"use_vllm": True, "vllm_mode": "both"}, {}, "vllm_mode: 'both' is not one of colocate, server"),
    ({"use_vllm": True, "vllm_tensor_parallel_size": 2}, {}, "vllm_tensor_parallel_size: 2 does nothing here"),
    ({"use_vllm": True, "vllm_enable_sleep_mode": True}, {}, "vllm_enable_sleep_mode: True does nothing here"),
    ({"use_vllm": True, "vllm_structured_outputs_regex": "a"}, {}, "vllm_structured_outputs_regex: a does nothing"),
    ({"use_vllm": True, "vllm_importance_sampling_clip_max": 2.0}, {}, "vllm_importance_sampling_clip_max: 2.0 does"),
]


@pytest.mark.parametrize(("changes", "policy", "said"), BAD, ids=str)
def test_what_an_engine_cannot_do_is_refused_by_name_before_it_starts(base, tmp_path, changes, policy, said):
    def engine():
        raise AssertionError("it was started")

    more = {"engine": engine} if changes else {}
    with pytest.raises(ValueError, match=f"^{said}"):
        make_trainer(base, settings(tmp_path, **changes), PolicyArguments(**policy), **more)


def test_a_prompt_that_thinks_is_refused(tmp_path):
    folder = base_folder(tmp_path / "base", "think_next_item", max_position_embeddings=1024)
    with pytest.raises(ValueError, match="^use_vllm: the prompt thinks"):
        make_trainer(folder, settings(tmp_path, use_vllm=True), engine=lambda: None)


def remote(url: str, folder, dtype: str = "float32", seconds: float = 5) -> RemoteRollouts:
    return RemoteRollouts(url, loaded(folder).config.semid_fingerprint, dtype, seconds)


@pytest.fixture
def server(base):
    """`(engine, url)`"""
    engine = SecondModel(base)
    app = create_app(engine, base, "float32", Settings("tiny", max_body_bytes=2**30))
    with listening_app(app) as url:
        yield engine, url


@pytest.mark.parametrize("model_args", [None, LORA], ids=["whole", "lora"])
def test_a_run_through_a_server_is_the_same_run(base, server, tmp_path, model_args):
    engine, url = server
    rolled_out = trained(base, tmp_path, remote(url, base), model_args=model_args)
    assert_same_run(trained(base, tmp_path, model_args=model_args), rolled_out)
    assert engine.times == 4


def test_a_server_with_other_weights_than_were_sent_is_found_out(base, server):
    engine, url = server
    weights, (one, other) = loaded(base).model.state_dict(), (remote(url, base), remote(url, base))
    with pytest.raises(ValueError, match=r"409.*has the weights '\(none yet\)'"):
        one.search([[1, 2]], 2, "catalogue")
    one.take(weights.items())
    rows, scores = one.search([[1, 2], [3]], 2, "catalogue")
    wanted = engine.search([[1, 2], [3]], 2, "catalogue")
    assert np.array_equal(rows, wanted[0]) and np.array_equal(scores, wanted[1])
    other.take(weights.items())
    with pytest.raises(ValueError, match="409.*another run uses it, or it was started again"):
        one.search([[1, 2]], 2, "catalogue")
    with pytest.raises(ValueError, match="400.*no whole safetensors file"):
        one._ask("PUT", "/v1/rollouts/weights/x", b"\x08" * 100)


def test_weights_of_another_model_are_refused_and_those_before_stay(base, server):
    engine, url = server
    weights, one = loaded(base).model.state_dict(), remote(url, base)
    one.take(weights.items())
    for wrong in (torch.zeros(1), None):
        given = dict(weights, **{"model.norm.weight": wrong})
        with pytest.raises(ValueError, match="400.*model.norm.weight is .*start the server with the folder"):
            remote(url, base).take((name, weight) for name, weight in given.items() if weight is not None)
    one.search([[1, 2]], 2, "catalogue")
    assert engine.times == 1


def test_a_server_of_something_else_is_refused(base, server, monkeypatch):
    _, url = server
    with pytest.raises(ValueError, match="^vllm_server_base_url: .* has dtype float32, this run bfloat16: "):
        remote(url, base, "bfloat16")
    with pytest.raises(ValueError, match="^vllm_server_base_url: .* has semid_fingerprint .*, this run other: "):
        RemoteRollouts(url, "other", "float32", 5)
    for wrong in ("localhost:8000", "http://", "http://a:port", "http://[a"):
        with pytest.raises(ValueError, match=f"^vllm_server_base_url: {re.escape(repr(wrong))} is no address"):
            remote(wrong, base)
    with pytest.raises(ValueError, match="^vllm_server_base_url: nobody answers at http://127.0.0.1:9"):
        remote("http://127.0.0.1:9", base, seconds=0)


@contextmanager
def nobody(answer: bytes | None):
    """The URL of what is no such server: it takes a connection, and says this and closes it; of `None` nothing."""
    held = []

    def run():
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                held.append(listening.accept()[0])
                if answer is not None:
                    held[-1].recv(2**16)
                    held[-1].sendall(answer)
                    held.pop().close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    for one in held:
        one.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"
ANSWERS = {
    "silence": (None, "nobody answers at"),
    "the end": (b"", "nobody answers at"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "nobody answers at"),
    "half an answer": (OK + b"{", "nobody answers at"),
    "no JSON": (OK + b"<p>hello</p>", "no object to GET /v1/rollouts: is it llmrec.serving.rollouts"),
    "no object": (OK + b'["a", "b"]  ', "no object to GET /v1/rollouts"),
    "another object": (OK + b'{"a": "bc"} ', "has semid_fingerprint None"),
    "another place": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answers 302 to GET"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_what_is_no_such_server_is_an_error_of_the_value_with_its_address(monkeypatch, what):
    """At first, and in the middle of a run."""
    answer, said = ANSWERS[what]
    for limit in ("_AT_ONCE_S", "_LONGEST_S"):
        monkeypatch.setattr(f"llmrec.serving.rollouts.remote.{limit}", 0.2)
    with nobody(answer) as url:
        with pytest.raises(ValueError, match=f"{url}.*{said}|{said} {url}"):
            RemoteRollouts(url, "print", "float32", 0)
        first = b'{"semid_fingerprint": "print", "dtype": "float32"}'
        with nobody(OK.replace(b"12", str(len(first)).encode()) + first) as right:
            one = RemoteRollouts(right, "print", "float32", 0)
        with pytest.raises(
            ValueError, match=f"^{right} does not answer PUT .*ConnectionRefused.*start .* there again"
        ):
            one.take([])
        if said == "nobody answers at":
            one.address = urlsplit(url)
            with pytest.raises(ValueError, match="does not answer POST"):
                one.search([[1, 2]], 2, "catalogue")


def test_a_server_asks_for_its_key(base, monkeypatch):
    app = create_app(SecondModel(base), base, "float32", Settings("tiny", "secret"))
    with listening_app(app) as url:
        with pytest.raises(ValueError, match="401.*LLMREC_API_KEY"):
            remote(url, base)
        for wrong in ("secret\n", "schlüssel"):
            monkeypatch.setenv("LLMREC_API_KEY", wrong)
            with pytest.raises(ValueError, match="^LLMREC_API_KEY has spaces around it"):
                remote(url, base)
        monkeypatch.setenv("LLMREC_API_KEY", "secret")
        assert remote(url, base).taken == 0


FAILS_IN_ONE = """
import sys
from accelerate import PartialState
from llmrec.training.sharding import together
state = PartialState(cpu=True)
for at_fault in (None, 1, 0):
    try:
        with together():
            if state.process_index == at_fault:
                raise RuntimeError(f"{at_fault} has no room")
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {error};")
"""


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    more = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    command = [sys.executable, "-c", FAILS_IN_ONE]
    both = [subprocess.Popen(command, env=group | one, stdout=subprocess.PIPE, text=True) for one in more]
    said = [one.communicate(timeout=100)[0] for one in both]
    assert said[0] == "ValueError: 1 has no room;RuntimeError: 0 has no room;"
    assert said[1] == "RuntimeError: 1 has no room;ValueError: 0 has no room;"
