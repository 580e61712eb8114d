"""A writer without engines and a server that follows it, as users start them, whose requests are traced."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from http_fixtures import wait_for
from server_process import ServerProcess, free_port, serve
from serving_folders import random_folder

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def spans():
    """What an OpenTelemetry collector gets, and its address."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            got.extend(span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", free_port()), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield got, f"http://127.0.0.1:{server.server_port}/v1/traces"
        server.shutdown()


@pytest.fixture(scope="module")
def fronts(tmp_path_factory, spans):
    """`(writer, front)`."""
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    folder = random_folder(tmp_path_factory.mktemp("fronts") / "shop", depth=3, num_items=60, fixed=True)
    log = folder.with_name("writer.log")
    flags = "--modes", "catalogue", "--catalogue_dir", str(folder.with_name("written"))
    writer = ServerProcess(["-m", "llmrec.serving", str(folder), *flags], log)
    assert writer.http.post("/v1/catalogue", json={"remove": ["item-0001"]}).status_code == 200
    follow = "--follow", f"http://127.0.0.1:{writer.port}", "--catalogue_dir", str(folder.with_name("followed"))
    traced = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": spans[1], "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    front = serve(folder, *follow, "--drain_s", "2", OTEL_BSP_SCHEDULE_DELAY="200", **traced)
    yield writer, front
    front.kill()
    writer.kill()


def recommended(front: ServerProcess, **headers: str) -> dict:
    answer = front.http.post("/v1/recommend", json={"history": ["item-0009"], "k": 58}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.vllm
def test_a_change_at_the_writer_is_in_the_next_answer(fronts):
    writer, front = fronts
    assert front.http.get("/ready").json()["catalogue_version"] == 1
    assert writer.http.post("/v1/recommend", json={"history": [], "k": 1}).status_code == 404
    for number in (2, 3):
        gone = f"item-000{number}"
        assert writer.http.post("/v1/catalogue", json={"remove": [gone]}).json()["version"] == number
        found = front.http.post("/v1/recommend", json={"history": ["item-0009"], "k": 57 - number + 2}).json()
        assert found["catalogue_version"] == number and gone not in [item["item_id"] for item in found["items"]]
    assert writer.http.post("/v1/catalogue/rollback", json={"version": 1}).status_code == 200
    assert "item-0002" in [item["item_id"] for item in recommended(front)["items"]]
    assert front.http.post("/v1/catalogue", json={"remove": ["item-0004"]}).status_code == 409


@pytest.mark.vllm
def test_a_trace_goes_through_the_front_to_the_engine(fronts, spans):
    _, front = fronts
    recommended(front, traceparent=f"00-{TRACE}-{PARENT}-01")
    ours = []

    def there() -> bool:
        ours[:] = [span for span in spans[0] if span.trace_id.hex() == TRACE]
        return "llm_request" in [span.name for span in ours] and any(s.parent_span_id.hex() == PARENT for s in ours)

    wait_for(there)
    (root,) = [span for span in ours if span.parent_span_id.hex() == PARENT]
    (engine,) = [span for span in ours if span.name == "llm_request"]
    assert root.name == "POST /v1/recommend" and engine.parent_span_id == root.span_id
    assert TRACE in front.log.read_text()


@pytest.mark.vllm
def test_without_its_writer_it_goes_on_and_leaves_in_order(fronts):
    writer, front = fronts
    writer.kill()
    assert len(recommended(front)["items"]) == 58
    front.process.terminate()
    wait_for(lambda: front.http.get("/ready").status_code == 503, 5)
    assert len(recommended(front)["items"]) == 58
    began = time.monotonic()
    assert front.process.wait(30) == 0 and time.monotonic() - began < 20
    with pytest.raises(httpx.TransportError):
        front.http.get("/health")
