"""Ray on this machine makes the file that one process makes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.catalogue.filters import Filter
from llmrec.serving.batch.parts import RayActors, load
from llmrec.serving.batch.recommend_file import model_settings, recommend_file

DATA = tiny_data()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model folder and users."""
    folder = tmp_path_factory.mktemp("ray")
    rng = np.random.default_rng(0)
    items = DATA.items["item_id"].to_pylist()
    histories = [rng.choice(items, number % 9).tolist() for number in range(50)]
    rows = pa.table({"user_id": [f"u{number}" for number in range(50)], "history": histories})
    pq.write_table(rows, folder / "users.parquet", row_group_size=30)
    return write_tiny_base(folder / "model", DATA, tiny_index(DATA), head_dim=32), folder / "users.parquet"


def assert_same(many, one):
    """Equal but for the last bits of scores."""
    many, one = map(pq.read_table, (many, one))
    assert many.schema.equals(one.schema)
    assert many.drop_columns("scores").equals(one.drop_columns("scores"))
    scores = [table["scores"].combine_chunks().flatten() for table in (many, one)]
    np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.vllm
def test_vllm_in_an_actor_makes_the_file_of_one_process(ray, files, tmp_path):
    folder, users = files
    asked = {"k": 4, "filters": Filter(exclude_seen=True), "part_rows": 8, "num_beams": 8}
    engine = {"dtype": "float32", "distributed_executor_backend": "uni", "max_model_len": 256}
    one = recommend_file(load(folder), users, tmp_path / "one.parquet", **asked)
    many = recommend_file(RayActors(folder, "vllm", engine, 1, 0), users, tmp_path / "many.parquet", **asked)
    assert_same(many, one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.parquet", "one.parquet"]


@pytest.mark.vllm
def test_two_actors_go_on_where_one_process_stopped(ray, files, tmp_path):
    folder, users = files
    recommender, settings = load(folder), model_settings(folder, "hf", {})
    one = recommend_file(recommender, users, tmp_path / "one.parquet", part_rows=8, settings=settings)
    recommend, calls = recommender.recommend, []

    def stopped(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return recommend(*args, **kwargs)

    recommender.recommend = stopped
    output = tmp_path / "many.parquet"
    with pytest.raises(KeyboardInterrupt):
        recommend_file(recommender, users, output, part_rows=8, settings=settings)
    begun = [path.name for path in (tmp_path / "many.parquet.parts").glob("*.parquet")]
    assert sorted(begun) == ["000000.parquet", "000001.parquet"]
    assert_same(recommend_file(RayActors(folder, "hf", {}, 2, 0), users, output, part_rows=8), one)


@pytest.mark.vllm
def test_a_filter_that_does_not_fit_is_refused_before_actors_start(ray, files, tmp_path):
    folder, users = files
    for request in (Filter(where=[("colour", "==", "red")]), Filter(at_most={"colour": 1})):
        with pytest.raises(ValueError, match="filter column 'colour' is not in the catalogue"):
            recommend_file(RayActors(folder, "hf", {}, 1, 0), users, tmp_path / "lists.parquet", filters=request)
    assert not list(tmp_path.iterdir())


@pytest.mark.vllm
def test_parts_stay_where_an_actor_fails(ray, files, tmp_path):
    folder, users = files
    output = tmp_path / "lists.parquet"
    with pytest.raises(ray.exceptions.RayTaskError, match="num_beens"):
        recommend_file(RayActors(folder, "hf", {}, 1, 0), users, output, num_beens=3)
    assert not output.exists()
    assert (tmp_path / "lists.parquet.parts" / "settings.json").exists()
