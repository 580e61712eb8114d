"""The application of Ray Serve on this machine: replicas that follow a writer, asked through Ray's proxy."""

import httpx
import pytest
from http_fixtures import wait_for
from server_process import ServerProcess, free_port
from serving_folders import random_folder


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """`(client of Ray's proxy, writer)`."""
    pytest.importorskip("ray.serve", exc_type=ImportError)
    import ray
    from ray import serve

    from llmrec.serving.ray_serve import Arguments, app

    folder = random_folder(tmp_path_factory.mktemp("ray") / "shop", depth=3, num_items=60, fixed=True)
    flags = "--modes", "catalogue", "--catalogue_dir", str(folder.with_name("written"))
    writer = ServerProcess(["-m", "llmrec.serving", str(folder), *flags], folder.with_name("writer.log"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    asked = {"folder": str(folder), "follow": f"http://127.0.0.1:{writer.port}", "vllm": {"dtype": "float32"}}
    serve.run(app(Arguments(**asked, settings={"no_keys": True})))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client, writer
    serve.shutdown()
    ray.shutdown()
    writer.kill()


@pytest.mark.vllm
def test_a_replica_answers_and_follows(application):
    client, writer = application
    wait_for(lambda: client.get("/ready").status_code == 200)
    before = client.post("/v1/recommend", json={"history": ["item-0009"], "k": 5}).json()
    assert len(before["items"]) == 5 and before["catalogue_version"] == 0
    gone = before["items"][0]["item_id"]
    assert writer.http.post("/v1/catalogue", json={"remove": [gone]}).status_code == 200
    after = client.post("/v1/recommend", json={"history": ["item-0009"], "k": 5}).json()
    assert after["catalogue_version"] == 1 and gone not in [item["item_id"] for item in after["items"]]
    assert client.post("/v1/catalogue", json={"remove": ["item-0001"]}).status_code == 409
    assert client.post("/v1/recommend", json={"history": ["nobody"]}).status_code == 400


@pytest.mark.vllm
def test_arguments_are_read_strictly():
    pytest.importorskip("ray.serve", exc_type=ImportError)
    from llmrec.serving.ray_serve import Arguments

    with pytest.raises(ValueError, match="folowe"):
        Arguments(folder="x", follow="http://a:1", folowe="y")
    with pytest.raises(ValueError, match="modes"):
        Arguments(folder="x", follow="http://a:1", modes=[])
    for wrong in ({"max_kk": 5}, {"follow": "http://b:1"}, {"api_key": "a"}, {"max_k": "ten"}):
        with pytest.raises(ValueError, match=rf"settings\.{next(iter(wrong))}\n"):
            Arguments(folder="x", follow="http://a:1", settings=wrong)
    assert Arguments(folder="x", follow="http://a:1", settings={"max_k": 5}).settings.max_k == 5
