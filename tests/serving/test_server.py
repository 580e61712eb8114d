"""`python -m llmrec.serving` as users start it: both engines, the front, OpenAI's client, a catalogue that changes."""

import threading

import numpy as np
import psutil
import pytest
from server_process import ServerProcess, serve
from serving_folders import random_folder

from llmrec.recommenders import LLMRecommender

KEY, ADMIN = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer root"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp("server") / "shop", depth=3, num_items=120, fixed=True)


@pytest.fixture(scope="module")
def server(folder):
    server = serve(folder, "--modes", "recommend,generate", LLMREC_API_KEY="secret", LLMREC_ADMIN_KEY="root")
    server.http.headers.update(KEY)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def hf(folder):
    return LLMRecommender.from_pretrained(folder, dtype="float32")


def histories(hf: LLMRecommender, count: int) -> list[list[str]]:
    rng = np.random.default_rng(5)
    return [rng.choice(hf.item_ids, rng.integers(1, 9)).tolist() for _ in range(count)]


def recommended(server: ServerProcess, **body) -> list[str]:
    answer = server.http.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.mark.vllm
def test_recommendations_are_those_of_transformers(server, hf):
    asked = histories(hf, 16)
    expected = hf.recommend(asked, k=10)
    bodies = {"requests": [{"history": history, "k": 10} for history in asked]}
    for answer, items in zip(server.http.post("/v1/recommend/batch", json=bodies).json()["data"], expected):
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in items]
        np.testing.assert_allclose([i["score"] for i in answer["items"]], [i.score for i in items], atol=1e-4)
    found = {}

    def ask(place: int) -> None:
        found[place] = recommended(server, history=asked[place], k=10)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(asked))] == [[item.item_id for item in one] for one in expected]


@pytest.mark.vllm
def test_beam_search_of_the_openai_client_gives_the_same_items(server, hf):
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret")
    (model,) = client.models.list().data
    history = histories(hf, 1)[0]
    (prompt,) = hf.prompts([history])
    beams = {"use_beam_search": True, "ignore_eos": True, "length_penalty": 0.0}
    answer = client.completions.create(
        model=model.id, prompt=prompt, max_tokens=3, n=20, temperature=0, extra_body=beams
    )
    expected = hf.recommend([history], k=20, num_beams=20)[0]
    assert [choice.items[0]["item_id"] for choice in answer.choices] == [item.item_id for item in expected]
    answer = client.completions.create(
        model=model.id, prompt=prompt, max_tokens=4, n=8, temperature=1, extra_body={"vllm_xargs": {"semid": "next"}}
    )
    assert all(len(choice.items) == 1 for choice in answer.choices)
    asked = {"model": model.id, "messages": [{"role": "user", "content": "what is new?"}], "max_tokens": 40, "seed": 1}
    chat = client.chat.completions.create(**asked, temperature=1)
    assert chat.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, temperature=1, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat.choices[0].message.content
    assert chunks[-1].choices[0].items == chat.choices[0].items


@pytest.mark.vllm
def test_a_change_is_seen_by_both_engines(server, hf):
    history = histories(hf, 1)[0]
    first, second, *_ = recommended(server, history=history, k=5)
    changes = {"remove": [first], "put": [{"item_id": second, "price": 1000.0}]}
    answer = server.http.post("/v1/catalogue", json=changes, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert answer.json()["removed"] == [first]
    assert first not in recommended(server, history=history, k=119)
    assert len(recommended(server, history=[first, second], k=5)) == 5  # histories keep what is gone
    assert recommended(server, history=history, k=3, filter={"where": [["price", ">", 999]]}) == [second]
    body = {"model": "shop", "prompt": hf.prompts([history])[0], "max_tokens": 3, "n": 119, "temperature": 0,
            "use_beam_search": True, "ignore_eos": True, "length_penalty": 0}  # fmt: skip
    named = server.http.post("/v1/completions", json=body).json()["choices"]
    assert hf.index.encode(first) not in [choice["text"] for choice in named]
    assert hf.index.encode(second) in [choice["text"] for choice in named]
    back = server.http.post("/v1/catalogue/rollback", json={"version": 0}, headers=ADMIN)
    assert back.status_code == 200, back.text
    assert recommended(server, history=history, k=5)[:2] == [first, second]


@pytest.mark.vllm
@pytest.mark.parametrize(
    "body",
    [
        {"history": ["nobody"]},
        {"history": ["item-0001"], "k": 0},
        {"history": ["item-0001"], "k": 10**9},
        {"history": ["item-0001"], "filter": {"where": [["colour", "==", "red"]]}},
        {"history": ["item-0001"], "filter": {"where": [["price", "~", 3]]}},
        {"history": ["item-0001"], "filter": {"at_most": {"brand": 0}}},
    ],
)
def test_bad_requests_leave_the_engine_alone(server, body):
    answer = server.http.post("/v1/recommend", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert len(recommended(server, history=["item-0001"], k=3)) == 3


@pytest.mark.vllm
@pytest.mark.slow
def test_killed_and_started_again(folder, hf, tmp_path):
    flags = "--catalogue_dir", str(tmp_path / "catalogue")
    server = serve(folder, *flags)
    for number in range(3):
        gone = server.http.post("/v1/catalogue", json={"remove": [f"item-{number:04d}"]})
        assert gone.status_code == 200, gone.text
    front = psutil.Process(server.process.pid)
    engines = [one for one in front.children(recursive=True) if "VLLM" in " ".join(one.cmdline())]
    assert engines
    server.process.kill()  # the front alone: its engines must not outlive it
    _, alive = psutil.wait_procs(engines, timeout=20)
    assert not alive
    server = serve(folder, *flags)
    try:
        state = server.http.get("/v1/catalogue").json()
        assert (state["version"], state["items"]) == (3, 117)
        found = recommended(server, history=["item-0009"], k=117)
        assert set(found) == {f"item-{number:04d}" for number in range(3, 120)}
    finally:
        server.stop()


@pytest.mark.vllm
def test_vllms_own_server_has_our_routes(folder, hf, tmp_path):
    from llmrec.serving.vllm.routes import flags

    command = [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--dtype",
        "float32",
        "--host",
        "127.0.0.1",
    ]
    log = folder.with_name("vllm.log")
    server = ServerProcess([*command, *flags(folder, tmp_path / "catalogue")], log, VLLM_PLUGINS="llmrec")
    try:
        history = histories(hf, 1)[0]
        found = recommended(server, history=history, k=10)
        assert found == [item.item_id for item in hf.recommend([history], k=10)[0]]
        assert server.http.post("/v1/recommend", json={"history": ["nobody"]}).status_code == 400
    finally:
        server.stop()
