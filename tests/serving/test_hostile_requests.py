"""Requests that would kill a process or keep it busy are answered like others, by limits that the schema states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from http_fixtures import serving, tiny_folder
from pydantic import ValidationError

from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.serving.http.app import create_app
from llmrec.serving.http.schemas import BatchRequest, RecommendRequest
from llmrec.serving.http.settings import Settings

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
SCRIPT = Path(__file__).with_name("hostile_requests.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("http"))


def attack(folder: Path, scratch: Path, seed: int, requests: int) -> dict:
    command = [sys.executable, str(SCRIPT), str(folder), str(scratch), str(seed), str(requests)]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    return json.loads(ended.stdout)


def test_no_request_kills_the_process(folder, tmp_path):
    answered = attack(folder, tmp_path, seed=0, requests=20)
    assert answered["400"] > 5


@pytest.mark.slow
def test_no_request_of_very_many_kills_the_process(folder, tmp_path):
    assert attack(folder, tmp_path, seed=1, requests=5000)["200"] > 300


def test_many_conditions_need_no_stack():
    table = pa.table({"item_id": [f"{number}" for number in range(9)], "price": [float(n) for n in range(9)]})
    everything = [("price", "<", 100.0)] * 15_000
    mask = CatalogueFilter(table).allowed(Filter(where=[*everything, ("price", ">", 6.0)]))
    assert mask.nonzero()[0].tolist() == [7, 8]


def bounded(schema: dict, defs: dict, path: str, named: set[str]) -> list[str]:
    """Places of a schema where a list or a text may be of any length."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [] if name in named else bounded(defs[name], defs, name, named | {name})
    found = [] if schema.get("type") != "array" or "maxItems" in schema else [path]
    found += [] if schema.get("type") != "string" or {"maxLength", "enum", "const"} & {*schema} else [path]
    for name, inner in schema.get("properties", {}).items():
        found += bounded(inner, defs, f"{path}.{name}", named)
    items = [schema["items"]] if "items" in schema else []
    for part in [*schema.get("anyOf", ()), *schema.get("prefixItems", ()), *items]:
        found += bounded(part, defs, path, named)
    return found


def test_the_schema_states_every_limit():
    schema = create_app(None, Settings("tiny", max_k=7, max_history=8, max_batch=9, max_beams=11)).openapi()
    defs = schema["components"]["schemas"]
    for name in ("BatchRequest", "RecommendRequest", "Change"):
        assert bounded(defs[name], defs, name, {name}) == []
    fields = defs["RecommendRequest"]["properties"]
    assert (fields["k"]["maximum"], fields["history"]["maxItems"]) == (7, 8)
    assert fields["num_beams"]["anyOf"][0]["maximum"] == 11
    assert defs["BatchRequest"]["properties"]["requests"]["maxItems"] == 9


LARGE = [
    ({"filter": {"where": [["price", "<", 7.5]] * 65}}, "filter.where"),
    ({"filter": {"where": [["brand", "in", ["brand 1"] * 10_001]]}}, "filter.where[0][2]"),
    ({"filter": {"deny": ["item-01"] * 10_001}}, "filter.deny"),
    ({"filter": {"at_most": {f"column {number}": 1 for number in range(17)}}}, "filter.at_most"),
    ({"history": ["a" * 4097]}, "history[0]"),
    ({"history": ["item-01"] * 1001}, "history"),
    ({"history": [1] * 300_000}, "history[0]"),
    ({"task": "query_to_item", "history": [], "query": "a" * 16_385}, "query"),
    ({"history": [], "messages": [{"role": "user", "content": "a" * (2**17 + 1)}]}, "messages[0].content"),
]


@pytest.mark.parametrize("body, param", LARGE)
def test_what_is_too_large_is_named(folder, tmp_path, body, param):
    with serving(folder, tmp_path) as (_, client):
        answer = client.post("/v1/recommend", json={"history": ["item-03"]} | body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
        assert len(answer.text) < 2000


MANY = {f"{number}": "" for number in range(1000)}


@pytest.mark.parametrize(
    "read, body",
    [
        (BatchRequest, {"requests": [1] * 5000}),  # the server's own limit comes later
        (BatchRequest, {"requests": [{}]} | MANY),
        (RecommendRequest, MANY),
        (RecommendRequest, {"filter": MANY}),
        (RecommendRequest, {"filter": {"at_most": MANY}}),
        (RecommendRequest, {"messages": [MANY]}),
    ],
)
def test_what_has_many_faults_is_not_read_to_its_end(read, body):
    """A body of 1 MiB took the front for seconds."""
    with pytest.raises(ValidationError) as refused:
        read.model_validate(body)
    assert refused.value.error_count() == 1


def test_more_requests_in_a_batch_than_are_read_are_no_limit():
    with pytest.raises(ValueError, match="max_batch is 5000, it should be at most 4096"):
        Settings("tiny", max_batch=5000)


@pytest.mark.vllm
def test_values_of_a_chat_are_counted_beside_its_tokens():
    from llmrec.serving.http.openai_routes import values_of

    tokens = [7] * 200_000
    for prompt in (tokens, [tokens, tokens]):
        assert values_of({"prompt": prompt, "n": 1, "stop_token_ids": tokens}) == 1
    for many in ({"prompt": [*tokens, "a"]}, {"prompt": [tokens, "a"]}, {"messages": tokens}, tokens):
        assert values_of(many) > 200_000
    assert values_of({"messages": [{"role": "user", "content": [{"type": "text"}]}], "stop": ["a"]}) == 8
