"""Schemathesis asks what the OpenAPI schema allows, and what it forbids: every answer is one that it documents."""

from collections import Counter

import pytest
from http_fixtures import Server, tiny_folder
from hypothesis import HealthCheck, settings
from tiny import tiny_data

from llmrec.serving.http.app import create_app
from llmrec.serving.http.settings import Settings

schemathesis = pytest.importorskip("schemathesis")
from schema_requests import CONFIG, know_items  # noqa: E402

ITEMS = tiny_data().items["item_id"].to_pylist()
answered: Counter[tuple[str, int]] = Counter()  # how often each status of each route came


class Running:
    """The application, from when the fixture starts it: tests are collected before."""

    app = None

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


schema = schemathesis.openapi.from_dict(
    create_app(None, Settings("tiny", api_key="key", admin_key="root", max_k=50)).openapi(),
    config=CONFIG,
)
schema.app = Running()
know_items(schema, ITEMS)


@schema.hook
def after_call(context, case, response):
    answered[case.operation.label, response.status_code] += 1


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    server = Server(tiny_folder(folder), folder / "log", api_key="key", admin_key="root", max_k=50)
    schema.app.app = server.app
    yield server
    server.close()


@schema.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_answers_are_documented(case):
    case.call_and_validate(headers={"Authorization": "Bearer root"})


def test_the_server_was_asked_and_goes_on(server):
    assert sum(answered.values()) > 300
    assert answered["POST /v1/recommend/batch", 200] and answered["POST /v1/recommend", 400]
    assert all(status < 500 for _, status in answered)
    assert len(server.service.current.recommender.recommend([ITEMS[:2]], 5)[0]) == 5
