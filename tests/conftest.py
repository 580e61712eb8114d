"""Settings that hold for every test; they must stand before the first import of torch or a Hugging Face library."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a bug
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models of the tests are tiny: one thread is as fast as many, gives equal results everywhere, and leaves room.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

torch.manual_seed(0)  # of models that a module of tests makes


def pytest_runtest_setup():
    """Before the fixtures of a test: its draws, and so its result, depend on no other test."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real pretrained model, SmolLM2-135M-Instruct in bfloat16, for tests marked `pretrained`: the folder that
    LLMREC_PRETRAINED names, or the one that scripts/setup_pretrained.sh makes."""
    named = os.environ.get("LLMREC_PRETRAINED")
    folder = Path(named or Path(__file__).parents[1] / "out/pretrained/SmolLM2-135M-Instruct")
    if not (folder / "config.json").is_file():
        if named:
            pytest.fail(f"LLMREC_PRETRAINED names {folder}, which holds no model")
        pytest.skip("needs SmolLM2-135M-Instruct: bash scripts/test.sh -m pretrained fetches it")
    return folder


@pytest.fixture(scope="module")
def ray():
    """A Ray cluster of two nodes, both on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address)
    yield ray
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def extended(smollm2, tmp_path_factory) -> Path:
    """What recipes/init_model.py makes of it for the tiny store of `training.small_runs`."""
    from training.small_runs import DATA, INDEX

    from recipes.init_model import InitArguments, main

    folder = tmp_path_factory.mktemp("real")
    DATA.save(folder / "data")
    INDEX.save(folder / "semids.parquet", DATA.items)
    inputs = str(folder / "data"), str(folder / "semids.parquet"), str(folder / "base")
    main(InitArguments(*inputs, model_name_or_path=str(smollm2), embedding_init="text"))
    return folder / "base"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub in a folder (`fake_hub.FakeHub`)."""
    from fake_hub import FakeHub

    return FakeHub(tmp_path / "hub", monkeypatch)
