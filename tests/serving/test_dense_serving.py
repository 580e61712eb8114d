"""Dense retrieval in serving: what a request says of it, catalogue versions, and vLLM's states."""

import gc

import numpy as np
import pyarrow as pa
import pytest
from decoding.dense_heads import random_head
from http_fixtures import serving, tiny_folder
from living_catalogue import write_living_folder
from serving_folders import random_folder
from tiny import tiny_data, tiny_model

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.decoding.dense import MODES
from llmrec.models.folder import DENSE, RecommenderConfig, load_index, semids_table
from llmrec.models.update import add_dense
from llmrec.recommenders import LLMRecommender
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes
from llmrec.serving.vllm.catalogues import WorkerCatalogues

COLD = ["item-03", "item-11"]
HISTORY = ["item-04", "item-05"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder without a dense head, and one that uses its head."""
    path, data = tmp_path_factory.mktemp("served"), tiny_data()
    plain = tiny_folder(path, data)
    add_dense(plain, random_head(data, 64, COLD), "cold", path / "dense")
    return plain, path / "dense"


def test_http(folders, tmp_path):
    plain, folder = folders
    recommender = LLMRecommender.from_pretrained(folder)
    with serving(folder, tmp_path / "log") as (_, client):

        def ids(**body) -> list[str]:
            answer = client.post("/v1/recommend", json={"history": HISTORY, "k": 6, **body})
            assert answer.status_code == 200, answer.text
            return [item["item_id"] for item in answer.json()["items"]]

        expected = {mode: recommender.recommend([HISTORY], 6, dense=mode)[0] for mode in ("", *MODES)}
        expected = {mode: [item.item_id for item in items] for mode, items in expected.items()}
        assert expected["alone"] != expected[""]
        assert ids() == expected["cold"]
        assert {mode: ids(dense=mode) for mode in expected} == expected
        task = {"task": "like_but", "about": "item-03", "wish": "cheaper", "history": []}
        assert client.post("/v1/recommend", json=task).status_code == 200  # the folder's own mode is for histories
        requests = [{"history": HISTORY, "k": 6, "dense": mode} for mode in expected]
        answers = client.post("/v1/recommend/batch", json={"requests": requests}).json()
        lists = [[item["item_id"] for item in one["items"]] for one in answers["data"]]
        assert lists == list(expected.values())
        for body, words in (
            ({**task, "dense": "rank"}, "dense is for a history: leave it out beside task"),
            ({"messages": [{"role": "user", "content": "a gift"}], "dense": "alone"}, "beside messages"),
        ):
            answer = client.post("/v1/recommend", json=body)
            assert answer.status_code == 400 and words in answer.json()["error"]["message"]
            assert answer.json()["error"]["param"] == "dense"
        assert client.post("/v1/recommend", json={"history": HISTORY, "dense": "most"}).status_code in (400, 422)
    with serving(plain, tmp_path / "plain_log") as (_, client):
        answer = client.post("/v1/recommend", json={"history": HISTORY, "dense": "cold"})
        assert answer.status_code == 400 and "no dense head: run recipes/fit_dense.py" in answer.text


def test_versions_of_a_living_catalogue(tmp_path):
    """A worker's head follows the catalogue: newcomers are embedded, and what comes back has what it had."""
    data = tiny_data()
    folder = write_living_folder(tmp_path / "model")
    tiny_model(data, index_of(folder))[1].save_pretrained(folder)
    head = random_head(data, 64, COLD)
    head.save_pretrained(folder / DENSE)
    with CatalogueStore(folder) as store:
        worker = WorkerCatalogues(folder)
        assert worker.dense().item_ids == head.item_ids
        new = {"item_id": "new", "title": "red gadget number 7", "brand": "brand 3", "categories": "Shop > red"}
        for changes in (Changes(put=[new], remove=["item-02"]), None):
            prepared = store.prepare(changes) if changes else store.prepare_rollback(0)
            worker.load(prepared.record)
            store.commit(prepared)
        first, second = (worker.dense(number) for number in (1, 2))
    assert first.item_ids == worker.get(1).index.items and "item-02" not in first.item_ids
    assert dict(zip(first.item_ids, first.cold))["new"]
    text = head.features.encode(pa.table({name: [value] for name, value in new.items()})) @ head.project
    np.testing.assert_allclose(first.vectors[first.item_ids.index("new")], text[0] / np.linalg.norm(text), atol=1e-6)
    place = {item: number for number, item in enumerate(second.item_ids)}
    again = [place[item] for item in head.item_ids]
    np.testing.assert_array_equal(second.vectors[again], head.vectors)
    np.testing.assert_array_equal(second.cold[again], head.cold)


def index_of(folder):
    return load_index(folder, RecommenderConfig.load(folder))


@pytest.mark.vllm
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_vllm_gives_the_lists_of_transformers(family, tmp_path):
    from llmrec.serving.vllm.recommender import VLLMRecommender

    plain = random_folder(tmp_path / "model", family, depth=3)
    items = semids_table(plain)
    index = index_of(plain)
    items = items.take(pa.array([index.row(item) for item in index.items])).drop_columns(["semid", "codes"])
    train = pa.table({"item_ids": [index.items]})
    head = random_head(PreparedData(items, train, None, None), 64, index.items[::9])
    add_dense(plain, head, "cold", tmp_path / "dense")
    hf = LLMRecommender.from_pretrained(tmp_path / "dense", dtype="float32")
    engine = {"dtype": "float32", "gpu_memory_utilization": 0.3, "max_num_batched_tokens": 2048}
    ours = VLLMRecommender.from_pretrained(tmp_path / "dense", **engine)
    rng = np.random.default_rng(0)
    histories = [rng.choice(index.items, rng.integers(0, 12)).tolist() for _ in range(12)]
    filters = [None, Filter(exclude_seen=True), Filter(where=[("price", "<", 0.5)], at_most={"brand": 2})] * 4
    for mode in (None, "", *MODES):
        found, expected = (one.recommend(histories, 8, filters, dense=mode) for one in (ours, hf))
        assert [[item.item_id for item in one] for one in found] == [[item.item_id for item in o] for o in expected]
        for one, other in zip(found, expected):
            np.testing.assert_allclose([item.score for item in one], [item.score for item in other], atol=1e-3)
    del ours
    gc.collect()
