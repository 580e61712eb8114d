"""Chats and completions of a real vLLM engine behind the front: what is refused, streamed, and let go."""

import asyncio
import json

import pytest
from http_fixtures import front
from serving_folders import random_folder


@pytest.mark.vllm
def test_chats_and_completions(tmp_path):
    folder = random_folder(tmp_path / "shop", depth=3, num_items=60)
    asyncio.run(_ask(folder, tmp_path / "log"))


async def _ask(folder, log):
    async with front(folder, log) as (client, service):
        index = service.store.current.index
        chat = {"model": "shop", "messages": [{"role": "user", "content": "what is new?"}], "max_tokens": 30}
        text = {"model": "shop", "prompt": "gadget", "max_tokens": 8}
        beams = {"use_beam_search": True, "n": 5, "temperature": 0, "max_tokens": 4}

        async def post(path: str, body: dict, status: int = 200) -> dict:
            content, headers = json.dumps(body), {"content-type": "application/json"}
            answer = await client.post(f"/v1/{path}", content=content, headers=headers)
            assert answer.status_code == status, (body, answer.text)
            return answer.json()

        # Refused, each in our shape
        for path, body, status, param in [
            ("chat/completions", chat | {"messages": "hello"}, 400, "messages"),
            ("chat/completions", chat | {"model": "other"}, 404, "model"),
            ("chat/completions", chat | {"max_tokens": -1}, 400, "max_tokens"),
            ("chat/completions", chat | {"vllm_xargs": {"semid": "outside"}}, 400, None),
            ("chat/completions", chat | {"vllm_xargs": {"semid_version": 0}}, 400, "vllm_xargs.semid_version"),
            ("completions", text | {"prompt": "word " * 5000}, 400, None),
            ("completions", text | beams | {"prompt": ["one", "two"]}, 400, "prompt"),
            ("completions", text | beams | {"stream": True}, 400, None),
            # what would fail in the engine, or in native code
            ("chat/completions", chat | {"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
            ("completions", text | {"prompt": "\udfff"}, 400, None),
            ("chat/completions", chat | {"n": 513}, 400, "n"),
            ("completions", text | {"prompt": ["gadget"] * 300, "n": 2}, 400, "n"),
            ("completions", text | {"logprobs": 21}, 400, "logprobs"),
            ("completions", text | {"prompt_logprobs": "1024"}, 400, "prompt_logprobs"),
            ("chat/completions", chat | {"prompt_logprobs": -1}, 400, "prompt_logprobs"),
            ("chat/completions", chat | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
            ("completions", text | beams | {"n": 512}, 400, None),  # that looks at more tokens than there are
            ("completions", text | {"structured_outputs": {"regex": "(" * 1000}}, 400, "structured_outputs"),
            ("completions", text | {"structured_outputs": {"regex": "a" * 40_000}}, 400, "structured_outputs"),
            ("completions", text | {"structured_outputs": {"regex": "(a"}}, 400, None),
            ("completions", text | {"structured_outputs": {"grammar": "root ::= nothing"}}, 400, None),
            ("completions", text | {"structured_outputs": {"json": '{"type": "nothing"}'}}, 400, None),
            ("completions", text | {"structured_outputs": {"json": '{"type": '}}, 400, None),
            ("chat/completions", chat | {"response_format": {"type": "json_schema"}}, 400, None),
        ]:
            error = (await post(path, body, status))["error"]
            assert set(error) == {"message", "type", "param", "code"}, error
            assert param is None or error["param"] == param, error

        # 1 MiB of messages that are none are millions of errors, which took minutes and gigabytes
        for path, body in (
            ("chat", chat | {"messages": [1] * 500_000}),
            ("", text | {"prompt": [1] * 500_000 + ["a"]}),
        ):
            refused = await post(f"{path}/completions".strip("/"), body, 400)
            assert "more than 10000 values" in refused["error"]["message"]

        only = {"structured_outputs": {"regex": "(yes|no)"}}
        assert (await post("completions", text | only))["choices"][0]["text"] in ("yes", "no")

        # Beams are Semantic IDs and nothing else, after one prompt given as text or in a list
        for prompt in ("gadget", ["gadget"]):
            choices = (await post("completions", text | beams | {"prompt": prompt}))["choices"]
            assert len(choices) == 5
            for choice in choices:
                assert [item["item_id"] for item in choice["items"]] == list(
                    dict.fromkeys(index.decode(choice["text"]))
                )
                assert choice["items"]
        choices = (await post("chat/completions", chat | beams))["choices"]
        assert all(index.decode(choice["message"]["content"]) for choice in choices)

        # Streams end with the items that the text names
        for path, body in (("chat/completions", chat), ("completions", text)):
            body = body | {"vllm_xargs": {"semid": "next"}, "temperature": 1.0, "n": 3, "stream": True, "seed": 2}
            answer = await client.post(f"/v1/{path}", json=body)
            assert answer.headers["content-type"].startswith("text/event-stream")
            *events, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
            assert last == "[DONE]"
            said = {0: "", 1: "", 2: ""}
            for event in map(json.loads, events):
                for choice in event["choices"]:
                    said[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
            named = {choice["index"]: choice["items"] for choice in json.loads(events[-1])["choices"]}
            assert {number: [item["item_id"] for item in items] for number, items in named.items()} == {
                number: list(dict.fromkeys(index.decode(text))) for number, text in said.items()
            }
            assert all(named.values())

        # Places and versions are let go
        metrics = (await client.get("/metrics")).text
        assert "llmrec_generating 0.0" in metrics
        assert not any(service._uses.values())
