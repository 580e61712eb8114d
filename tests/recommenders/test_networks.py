"""Networks that rank: each learns a store, comes back from its folder, goes on after a kill, refuses what is wrong."""

import copy
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_data

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.data.known import known_items
from llmrec.data.prepared import SEQUENCES, TARGETS
from llmrec.data.times import UNKNOWN, history_times
from llmrec.evaluation import evaluate
from llmrec.features import item_softmax
from llmrec.features.attention import Dropout, causal_attention
from llmrec.features.next_item import next_item_batches, next_item_loss, next_item_windows
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel
from llmrec.recommenders import load_recommender
from llmrec.recommenders.hstu import HSTU
from llmrec.recommenders.loading import KINDS
from llmrec.recommenders.networks.bsarec import BSARecConfig, BSARecModel, low_pass
from llmrec.recommenders.networks.hstu import HSTUConfig, HSTUModel, time_buckets

ROOT = Path(__file__).parents[2]
SMALL = {"max_length": 8, "hidden_size": 32, "learning_rate": 1e-2, "batch_size": 32, "max_epochs": 30}
NETWORKS = {
    "sasrec": {**SMALL, "dropout": 0.1, "attention_dropout": 0.0, "rows": "prefix"},
    "bsarec": {**SMALL, "dropout": 0.1, "cutoff": 3},
    "bsarec dense": {**SMALL, "dropout": 0.1, "cutoff": 3, "rows": "dense"},
    "hstu": {**SMALL, "embedding_dropout": 0.1, "dropout": 0.1, "num_layers": 2},
    "hstu interleaved": {
        **SMALL,
        "embedding_dropout": 0.1,
        "dropout": 0.1,
        "num_layers": 2,
        "columns": ["brand", "categories"],
        "tokens": "interleaved",
    },
}


def kind_of(name: str):
    return KINDS[name.split()[0]]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, data):
    kind = kind_of(request.param)
    return kind.fit(data, kind.config_class(**NETWORKS[request.param]))


def test_each_learns_the_walk(trained, data):
    assert evaluate(trained, data.test, data, trained.kind, bootstrap=0).metrics["recall@1"] >= 0.9
    popularity = KINDS["popularity"].fit(data)
    assert evaluate(popularity, data.test, data, "popularity", bootstrap=0).metrics["recall@1"] < 0.3


def test_each_comes_back_from_its_folder(trained, tmp_path):
    histories = [["item-03", "item-04"], [], ["item-10"] * 12, ["item-23"]]
    filters = [Filter(exclude_seen=True), Filter(where=[("price", "<", 4)]), Filter(at_most={"brand": 1}), None]
    lists = trained.recommend(histories, k=[100, 3, 24, 5], filters=filters)
    assert [len(one) for one in lists] == [22, 3, 4, 5]
    trained.save_pretrained(tmp_path / "saved")
    again = load_recommender(tmp_path / "saved")
    assert type(again) is type(trained) and again.config == trained.config
    assert again.recommend(histories, k=[100, 3, 24, 5], filters=filters) == lists
    assert again.num_parameters == trained.num_parameters > 24 * 32


def test_lists_do_not_depend_on_those_beside(trained):
    histories = [[f"item-{i:02d}" for i in range(n % 7)] for n in range(20)]
    together = trained.recommend(histories, k=4)
    singles = [trained.recommend([history], k=4)[0] for history in histories]
    assert [[item.item_id for item in one] for one in together] == [[item.item_id for item in one] for one in singles]


@pytest.mark.parametrize("model", [BSARecModel(12, BSARecConfig(rows="dense")), HSTUModel(12, HSTUConfig())])
def test_dense_rows_do_not_see_the_future(model):
    model.eval()
    ids, changed = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 9]])
    lengths, times = torch.tensor([5]), torch.tensor([[10, 20, 30, 40, 50]])[..., None]
    later = torch.tensor([[10, 20, 30, 4000, 50000]])[..., None]
    with torch.no_grad():
        states = model(ids, lengths, times)
        assert torch.allclose(states[:, :3], model(changed, lengths, later)[:, :3], atol=1e-6)
        assert not torch.allclose(states[:, 3:], model(changed, lengths, later)[:, 3:], atol=1e-3)


def test_the_filter_is_the_papers():
    """The low-pass of BSARec as it is written there, by a Fourier transform of the sequence."""
    x = torch.randn(2, 50, 8)
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, 5 // 2 + 1 :] = 0
    expected = torch.fft.irfft(spectrum, n=50, dim=1, norm="ortho")
    assert torch.allclose(low_pass(50, 5) @ x, expected, atol=1e-5)


def test_a_prefix_row_counts_positions_from_its_end():
    """As rows that are padded on the left to max_length do: a longer row shares the positions of its newest items."""
    torch.manual_seed(0)
    model = BSARecModel(12, BSARecConfig(max_length=6, cutoff=3, hidden_size=8, num_layers=1, alpha=0.0)).eval()
    model.positions.weight.data[:] = torch.arange(6.0)[:, None]
    seen = []
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.items.weight.data[:] = 0
    model(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([4, 2]))
    assert seen[0][:, :, 0].tolist() == [[2, 3, 4, 5], [4, 5, 5, 5]]


def test_hstu_counts_positions_from_the_end_of_a_row():
    torch.manual_seed(0)
    model = HSTUModel(12, HSTUConfig(max_length=6, hidden_size=8, num_layers=1)).eval()
    model.positions.weight.data[:] = torch.arange(6.0)[:, None]
    model.items.weight.data[:] = 0
    seen = []
    model.dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([4, 2]), torch.zeros(2, 4, 3, dtype=torch.int64))
    assert seen[0][:, :, 0].tolist() == [[2, 3, 4, 5], [4, 5, 5, 5]]


def test_the_loss_in_parts_is_the_loss(monkeypatch):
    monkeypatch.setattr(item_softmax, "_LOGITS", 12 * 3)
    monkeypatch.setattr(item_softmax, "_STATES", 1)
    states, items = torch.randn(10, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    targets = torch.randint(12, (10,))
    whole, parts = F.cross_entropy(states @ items.T, targets), item_softmax.item_cross_entropy(states, items, targets)
    torch.testing.assert_close(parts, whole)
    for one, other in zip(*(torch.autograd.grad(3 * loss, (states, items)) for loss in (parts, whole))):
        torch.testing.assert_close(one, other)


ROWS = {"max_length": 8, "hidden_size": 16}
MODELS = {
    "sasrec": SASRecModel(40, SASRecConfig(**ROWS, num_layers=2, rows="prefix")),
    "bsarec": BSARecModel(40, BSARecConfig(**ROWS, cutoff=3, num_heads=2)),
    "bsarec dense": BSARecModel(40, BSARecConfig(**ROWS, cutoff=3, rows="dense")),
    "hstu": HSTUModel(40, HSTUConfig(**ROWS)),
    "hstu prefix": HSTUModel(40, HSTUConfig(**ROWS, rows="prefix")),
    "hstu interleaved": HSTUModel(
        40,
        HSTUConfig(**ROWS, rows="prefix", columns=["brand"], tokens="interleaved"),
        np.arange(40)[:, None, None],
        39,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_steps_have_the_losses_of_plain_ones(name):
    """Against every place of every layer and the logits of all targets at once, without dropout."""
    rng, rows = np.random.default_rng(0), "dense" if name in ("hstu", "bsarec dense") else "prefix"
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 14, 60))])
    values, times = rng.integers(40, size=offsets[-1]).astype(np.int32), np.sort(rng.integers(10**6, size=offsets[-1]))
    windows, known = next_item_windows(offsets, np.ones(60, int), 8, rows), known_items(offsets, times)
    curves, gradients = {}, {}
    for way in ("ours", "plain"):
        model = copy.deepcopy(MODELS[name]).double().eval()
        optimizer, curves[way] = torch.optim.SGD(model.parameters(), 1e-5), []
        for batch in next_item_batches(values, known, windows, 16, np.random.default_rng(0)):
            if way == "ours":
                loss, count = next_item_loss(model, batch, rows == "prefix")
                assert count == (batch[1] >= 0).sum()
            else:
                ids, labels, lengths, beside = map(torch.from_numpy, batch)
                states = model(ids, lengths, beside)[labels >= 0]
                loss = F.cross_entropy(model.head(states), labels[labels >= 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[way].append(loss.item())
        gradients[way] = [weights.grad for weights in model.parameters()]
    assert len(curves["ours"]) >= 4 and curves["ours"][-1] != curves["ours"][0]
    assert curves["ours"] == pytest.approx(curves["plain"], rel=1e-9)
    for one, other in zip(gradients["ours"], gradients["plain"]):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * other.abs().max().item() + 1e-12)


def test_attention_is_that_of_pytorch():
    linear, x, lengths = torch.nn.Linear(8, 24), torch.randn(3, 5, 8), torch.tensor([5, 2, 4])
    q, k, v = linear(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(causal_attention(linear, x, 2, Dropout(0.0)), expected)
    last = expected[torch.arange(3), lengths - 1][:, None]
    torch.testing.assert_close(causal_attention(linear, x, 2, Dropout(0.0), lengths), last)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = torch.ones(101, 1001, requires_grad=True)
    dropout = Dropout(rate)
    kept = dropout(x)
    assert set(kept.unique().tolist()) <= {0.0, torch.tensor(2**16 / (2**16 - round(rate * 2**16))).item()}
    assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert (kept.flatten()[: 101 * 1000].view(-1, 4).mean(0) - 1).abs().max() < 0.03  # all bits of a draw are used
    (gradient,) = torch.autograd.grad(kept.sum(), x)
    assert torch.equal(gradient, kept)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_of_attention_is_that_of_every_place():
    """The last place alone weighs its items as all places do: in the mean over many draws both give the same."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 24)
    x, lengths = torch.randn(1, 5, 8).expand(20_000, 5, 8), torch.full((20_000,), 4)
    dropout = Dropout(0.5)
    both = [causal_attention(linear, x, 2, dropout)[:, 3], causal_attention(linear, x, 2, dropout, lengths)[:, 0]]
    for moment in (torch.mean, torch.std):
        one, other = (moment(way.double(), 0) for way in both)
        torch.testing.assert_close(one, other, atol=0.03, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    data = tiny_data(num_users=30)
    kind = kind_of(name)
    config = kind.config_class(**NETWORKS[name] | {"max_epochs": 5, "patience": 3, "batch_size": 8})
    whole = kind.fit(data, config, folder=tmp_path / "whole")

    steps = []

    def stop(loss, what):
        steps.append((tmp_path / "killed" / "checkpoint").exists())
        if sum(steps) == 2:  # within the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llmrec.features.network_training.check_loss", stop)
        kind.fit(data, config, folder=tmp_path / "killed")
    begun = json.loads((tmp_path / "killed" / "curve.json").read_text())["epochs"]
    assert len(begun) == 1
    torch.manual_seed(99)  # the state of the random numbers is part of the checkpoint
    resumed = kind.fit(data, config, folder=tmp_path / "killed")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    curves = [json.loads((tmp_path / one / "curve.json").read_text())["epochs"] for one in ("whole", "killed")]
    assert [[{**epoch, "seconds": 0} for epoch in curve] for curve in curves][0] == [
        {**epoch, "seconds": 0} for epoch in curves[1]
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bsarec", {"alfa": 0.5}, "settings of kind 'bsarec': there is no argument 'alfa'.*did you mean 'alpha'"),
        ("bsarec", {"alpha": 1.5}, r"alpha is 1.5, it should lie in \[0, 1\]"),
        ("bsarec", {"cutoff": 51}, "cutoff 51 leaves no high frequency of 50 places"),
        ("bsarec", {"num_heads": 3}, "hidden_size 64 is not a multiple of num_heads 3"),
        ("bsarec", {"dropout": 1.0}, "dropout: 1.0 leaves nothing"),
        ("hstu", {"temperature": 0}, "temperature is 0, it should be a number of at least 0.0001"),
        ("hstu", {"untimed": 1}, "untimed: 1 leaves nothing"),
        ("hstu", {"rows": "sparse"}, "rows 'sparse' is not one of dense, prefix"),
        ("sasrec", {"validation_rows": 0}, "validation_rows is 0"),
        ("bsarek", {}, "kind 'bsarek' is not one of .*did you mean 'bsarec'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(tmp_path, monkeypatch, kind, settings, said):
    config = tmp_path / "config.yaml"
    lines = [f"data_dir: {tmp_path / 'gone'}", f"output_dir: {tmp_path / 'out'}", f"kind: {kind}"]
    config.write_text("\n".join([*lines, f"settings: {json.dumps(settings)}"]))
    monkeypatch.setattr(sys, "argv", ["train_recommender.py", "--config", str(config)])
    with pytest.raises(ValueError, match=said):
        runpy.run_path(str(ROOT / "recipes" / "train_recommender.py"), run_name="__main__")
    assert not (tmp_path / "out").exists()


# Times


def store_with_times() -> PreparedData:
    """What comes next follows from how long ago the item before was taken, and from nothing else: after `ask` comes
    `soon` where it was taken within a minute of the item before, and `late` where it was taken a year later."""
    rng = np.random.default_rng(0)
    items = ["noise-0", "noise-1", "noise-2", "ask", "soon", "late"]
    lists, times = [], []
    for _ in range(300):
        late = rng.random() < 0.5
        begin = int(rng.integers(10**9))
        asked = begin + (3 * 10**7 if late else 30)
        lists.append([items[rng.integers(3)], "ask", "late" if late else "soon"])
        times.append([begin, asked, asked + 10])
    users = [str(user) for user in range(len(lists))]
    train = pa.table({"user_id": users, "item_ids": lists, "timestamps": times, "num_context": [2] * len(lists)})
    test = pa.table(
        {
            "user_id": users,
            "history": [one[:2] for one in lists],
            "target": [one[2] for one in lists],
            "timestamp": [one[2] for one in times],
        }
    )
    test = test.cast(TARGETS)
    return PreparedData(pa.table({"item_id": items}), train.cast(SEQUENCES), test.slice(0, 60), test.slice(60), {})


def test_hstu_reads_times_and_ranks_without_them(tmp_path):
    data = store_with_times()
    # At a higher rate weights swing too far for the biases of times to be found: 8 seeds of 8 learn it in 23 epochs.
    settings = SMALL | {"learning_rate": 3e-3, "max_epochs": 40, "patience": 40}
    hstu = HSTU.fit(data, HSTUConfig(**settings, num_layers=2, embedding_dropout=0.0))
    timed = evaluate(hstu, data.test, data, "timed", exclude_seen=True, bootstrap=0).metrics["recall@1"]
    assert timed > 0.95
    histories = data.test["history"].to_pylist()[:20]
    plain = hstu.recommend(histories, k=6)
    assert {one[0].item_id for one in plain} <= {"soon", "late"}
    assert hstu.recommend(histories, k=6, times=[[None, None]] * 20) == plain
    times = history_times(data.test.slice(0, 20), data).to_pylist()
    assert hstu.recommend(histories, k=6, times=times) != plain
    with pytest.raises(ValueError, match="times: there should be one for every item"):
        hstu.recommend([["ask"]], times=[[1, 2]])
    hstu.save_pretrained(tmp_path / "hstu")
    assert load_recommender(tmp_path / "hstu").recommend(histories, times=times) == hstu.recommend(
        histories, times=times
    )
    blind = HSTU.fit(data, HSTUConfig(**SMALL | {"max_epochs": 5}, num_layers=2, time_buckets=0))
    assert evaluate(blind, data.test, data, "blind", exclude_seen=True, bootstrap=0).metrics["recall@1"] < 0.6


def test_time_buckets():
    times = torch.tensor([[0, 1, 100, 10**9, UNKNOWN]])
    (buckets,) = time_buckets(times, 80)
    assert torch.equal(buckets, buckets.T) and (buckets[4] == 80).all() and (buckets.diagonal()[:4] == 0).all()
    assert buckets[2, 0] == int(np.log(100) / 0.301) and buckets[3, 0] == int(np.log(1e9) / 0.301)
    assert time_buckets(times, 8).max() == 8


def test_times_of_histories_are_those_of_the_log():
    rows = {"user_id": ["u", "u", "v"], "target": ["c", "d", "a"], "timestamp": [30, None, 5]}
    train = pa.table(
        {
            "user_id": ["u", "v"],
            "item_ids": [["a", "b", "a"], ["b"]],
            "timestamps": [[10, None, 20], [7]],
            "num_context": [1, 1],
        }
    )
    valid = pa.table({"user_id": ["u"], "history": [["a"]], "target": ["c"], "timestamp": [30]})
    test = pa.table({**rows, "history": [["a", "b", "a", "z"], ["a", "c"], ["b", "a"]]}).select(TARGETS.names)
    data = PreparedData(pa.table({"item_id": list("abcdz")}), train.cast(SEQUENCES), valid.cast(TARGETS), test, {})
    found = history_times(test.cast(TARGETS), data).to_pylist()
    # b of u has no time; z was never taken by u; v took b after the row's own time, and a never.
    assert found == [[20, UNKNOWN, 20, UNKNOWN], [20, 30], [UNKNOWN, UNKNOWN]]
    early = pa.table({"user_id": ["u"], "history": [["a"]], "target": ["c"], "timestamp": [15]}).cast(TARGETS)
    assert history_times(early, data).to_pylist() == [[10]]
    assert history_times(early.slice(0, 0), data).to_pylist() == []


# The recipe


def run(config: Path, **flags) -> subprocess.Popen:
    more = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "recipes" / "train_recommender.py"), "--config", str(config), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_killed_recipe_goes_on(tmp_path):
    tiny_data(num_users=200).save(tmp_path / "data")
    settings = {**NETWORKS["bsarec"], "batch_size": 2, "max_epochs": 4}
    config = tmp_path / "config.yaml"
    config.write_text(f"data_dir: {tmp_path / 'data'}\nkind: bsarec\nsettings: {json.dumps(settings)}")
    assert run(config, output_dir=tmp_path / "whole").wait() == 0
    process = run(config, output_dir=tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "config.json").exists()
    process = run(config, output_dir=tmp_path / "killed")
    assert "goes on after epoch" in process.communicate()[0] and process.returncode == 0
    for name in ("model.safetensors", "config.json", "items.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert not (tmp_path / "killed" / "checkpoint").exists()


def test_the_recipe_writes_what_is_read(tmp_path, monkeypatch, capsys):
    data = tiny_data()
    data.save(tmp_path / "data")
    config = tmp_path / "config.yaml"
    settings = json.dumps(NETWORKS["hstu"] | {"max_epochs": 3})
    lines = [f"data_dir: {tmp_path / 'data'}", f"output_dir: {tmp_path / 'hstu'}", "kind: hstu"]
    config.write_text("\n".join([*lines, f"settings: {settings}"]))
    monkeypatch.setattr(sys, "argv", ["train_recommender.py", "--config", str(config)])
    for _ in range(2):
        runpy.run_path(str(ROOT / "recipes" / "train_recommender.py"), run_name="__main__")
    assert "Reusing" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "hstu").iterdir()} == {
        *("config.json", "items.parquet", "model.safetensors", "curve.json", "curve.png", "stage.json")
    }
    results = json.loads((tmp_path / "hstu" / "stage.json").read_text())["results"]
    curve = json.loads((tmp_path / "hstu" / "curve.json").read_text())["epochs"]
    assert results["updates"] == curve[-1]["step"] == 6 and results["best"] in curve
    again = load_recommender(tmp_path / "hstu")
    assert results["parameters"] == again.num_parameters
    found = evaluate(again, data.valid, data, "hstu", bootstrap=0).metrics["ndcg@10"]
    assert found == pytest.approx(results["best"]["ndcg@10"], abs=1e-5)
