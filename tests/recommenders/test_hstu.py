"""HSTU's tokens: what an interaction was and what the catalogue says of its item decide what comes next; times of
histories reach it in blends and choices, too."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_networks import SMALL, store_with_times
from tiny import tiny_data

from llmrec.data import PreparedData
from llmrec.data.known import history_known, training_known
from llmrec.data.prepared import schema_of
from llmrec.data.times import UNKNOWN
from llmrec.evaluation import evaluate
from llmrec.evaluation.cold_start import Restricted
from llmrec.recommenders import load_recommender
from llmrec.recommenders.blend import BlendConfig
from llmrec.recommenders.choosing import validation_ndcg
from llmrec.recommenders.hstu import HSTU, column_values
from llmrec.recommenders.loading import Blend
from llmrec.recommenders.networks.hstu import HSTUConfig, HSTUModel
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import requests_of, with_times

KINDS = ["view", "cart", "buy"]
TOKENS = ["merged", "interleaved"]


def config(**more) -> HSTUConfig:
    small = {"num_layers": 2, "embedding_dropout": 0.0, "dropout": 0.0, "learning_rate": 3e-3, "patience": 30}
    return HSTUConfig(**SMALL | small | more)


def store_with_behaviours(users: int = 240) -> PreparedData:
    """What comes next follows from what was done with `ask`, and from what is wanted: `seen` is bought after a view,
    `held` after a cart, and `ad` is viewed whatever was done."""
    rng = np.random.default_rng(0)
    items = ["noise-0", "noise-1", "noise-2", "ask", "seen", "held", "ad"]
    lists, kinds = [], []
    for _ in range(users):
        done, wanted = rng.choice(["view", "cart"]), rng.choice(["view", "buy"])
        target = "ad" if wanted == "view" else {"view": "seen", "cart": "held"}[done]
        lists.append([items[rng.integers(3)], "ask", target])
        kinds.append(["view", done, wanted])
    names = [str(user) for user in range(users)]
    train = {"user_id": names, "item_ids": lists, "timestamps": [[None] * 3] * users, "num_context": [2] * users}
    rows = {"user_id": names, "history": [one[:2] for one in lists], "target": [one[2] for one in lists]}
    rows |= {"timestamp": [None] * users, "behaviours": [one[:2] for one in kinds]}
    train = pa.table(train | {"behaviours": kinds}, schema_of("train", True))
    rows = pa.table(rows | {"target_behaviour": [one[2] for one in kinds]}, schema_of("test", True))
    catalogue = pa.table({"item_id": items})
    return PreparedData(catalogue, train, rows.slice(0, 60), rows.slice(60), {"behaviours": KINDS})


@pytest.mark.parametrize("tokens", TOKENS)
def test_what_was_done_and_what_is_wanted_decide(tokens, tmp_path):
    data = store_with_behaviours()
    hstu = HSTU.fit(data, config(behaviours=KINDS, tokens=tokens))
    assert evaluate(hstu, data.test, data, "hstu", bootstrap=0, exclude_seen=True).metrics["recall@1"] > 0.95
    pairs = [[("noise-1", "view"), ("ask", done)] for done in ("view", "cart")]
    best = [one[0].item_id for one in hstu.recommend(pairs, k=7)]
    assert best == ["seen", "held"], "the last of the behaviours is wanted by default"
    lists = hstu.recommend([*pairs, []], k=7, behaviour=["view", "buy", "buy"])
    assert [one[0].item_id for one in lists[:2]] == ["ad", "held"] and len(lists[2]) == 7
    # An id alone counts as the wanted behaviour.
    assert hstu.recommend([["ask"]], behaviour="cart") == hstu.recommend([[("ask", "cart")]], behaviour="cart")
    hstu.save_pretrained(tmp_path / "hstu")
    again = load_recommender(tmp_path / "hstu")
    assert again.behaviours == KINDS and again.recommend(pairs, k=7) == hstu.recommend(pairs, k=7)
    with pytest.raises(ValueError, match="behaviour 'bye' is not one of view, cart, buy: did you mean 'buy'"):
        hstu.recommend([["ask"]], behaviour="bye")


def test_without_behaviours_it_cannot_know():
    data = store_with_behaviours()
    blind = HSTU.fit(data, config(max_epochs=8))
    assert evaluate(blind, data.test, data, "blind", bootstrap=0, exclude_seen=True).metrics["recall@1"] < 0.65
    with pytest.raises(ValueError, match="this HSTU reads no behaviours"):
        blind.recommend([["ask"]], behaviour="buy")


def store_with_colours() -> PreparedData:
    """After a red item comes `stop`, after a green one `go`. Items are taken once or twice, so colours are learned
    sooner than items; the last 40 are in no sequence, and those before them in none but the validation's."""
    rng = np.random.default_rng(0)
    ids = [f"item-{number:03d}" for number in range(280)]
    last = [["stop", "go"][number % 2] for number in range(280)]
    colours = [["red", "green"][number % 2] for number in range(280)]
    shades = [number % 7 for number in range(280)]
    catalogue = {"item_id": [*ids, "stop", "go"], "colour": [*colours, None, None], "shade": [*shades, None, 3]}
    users = [str(user) for user in range(300)]
    shown = rng.permutation(np.arange(300) % 200)
    lists = [[ids[rng.integers(200)], ids[one], last[one]] for one in shown]
    train = {"user_id": users, "item_ids": lists, "timestamps": [[None] * 3] * 300, "num_context": [2] * 300}

    def rows(numbers: range) -> pa.Table:
        history, target = [[ids[one]] for one in numbers], [last[one] for one in numbers]
        named = {"user_id": users[:40], "history": history, "target": target, "timestamp": [None] * 40}
        return pa.table(named, schema_of("test", False))

    train = pa.table(train, schema_of("train", False))
    return PreparedData(pa.table(catalogue), train, rows(range(200, 240)), rows(range(240, 280)), {})


@pytest.mark.parametrize("tokens", TOKENS)
def test_columns_say_what_follows_items_that_nobody_took(tokens, tmp_path):
    data = store_with_colours()
    hstu = HSTU.fit(data, config(columns=["colour", "shade"], tokens=tokens))
    assert evaluate(hstu, data.test, data, "hstu", bootstrap=0).metrics["recall@1"] > 0.9
    blind = HSTU.fit(data, config(max_epochs=8))
    assert evaluate(blind, data.test, data, "blind", bootstrap=0).metrics["recall@1"] < 0.75
    hstu.save_pretrained(tmp_path / "hstu")
    histories = data.test["history"].to_pylist()
    assert load_recommender(tmp_path / "hstu").recommend(histories) == hstu.recommend(histories)


def test_values_of_columns():
    data = store_with_colours()
    values, count = column_values(data, ["colour", "shade"])
    assert values.shape == (282, 2, 1) and count == 2 + 7
    assert (
        len({*values[:, 0, 0].tolist()}) == 3 and values[280:, 0].sum() == 0 and values[280, 1] == 0 < values[281, 1]
    )
    model = HSTUModel(282, config(columns=["colour", "shade"]), values, count)
    vectors = model.column_vectors(torch.tensor([0, 1, 280]))
    assert vectors.shape == (3, 2, 32) and (vectors[2] == 0).all() and not torch.equal(vectors[0, 0], vectors[1, 0])


@pytest.mark.parametrize("tokens", TOKENS)
def test_no_token_of_a_later_interaction_is_seen(tokens):
    values = np.arange(1, 25).reshape(12, 2, 1)
    model = HSTUModel(12, config(columns=["a", "b"], behaviours=KINDS, tokens=tokens), values, 24).eval()
    ids, changed = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 9]])
    known = torch.tensor([[[10, 0, 1], [20, 1, 2], [30, 2, 0], [40, 0, 0], [50, 0, UNKNOWN]]])
    later, other = known.clone(), known.clone()
    later[:, 3:, :2] = torch.tensor([4000, 2])
    other[:, 2, 2] = 1  # what is to follow the third one
    with torch.no_grad():
        states, lengths = model(ids, torch.tensor([5]), known), torch.tensor([5])
        assert states.shape == (1, 5, 32)
        assert torch.allclose(states[:, :3], model(changed, lengths, later)[:, :3], atol=1e-6)
        told = model(ids, lengths, other)
        assert torch.allclose(states[:, :2], told[:, :2], atol=1e-6)
        assert not torch.allclose(states[:, 2], told[:, 2], atol=1e-3)


def test_what_is_known_by_hand():
    data = store_with_behaviours(4)
    kinds = [[KINDS.index(kind) for kind in one] for one in data.train["behaviours"].to_pylist()]
    known = training_known(data.train, True, KINDS)
    assert known.tolist() == [
        [UNKNOWN, one, after] for of_user in kinds for one, after in zip(of_user, [*of_user[1:], UNKNOWN])
    ]
    rows = history_known(data.valid, data, False, KINDS)
    assert rows.tolist() == [[UNKNOWN, a, b] for of_user in kinds for a, b in zip(of_user[:2], of_user[1:])]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"behaviours": KINDS}, "behaviours is .*no column behaviours in train.parquet"),
        ({"columns": ["color"]}, "the catalogue has no column 'color'"),
        ({"columns": ["item_id"]}, "column 'item_id' tells the 24 training items nothing"),
    ],
)
def test_what_the_data_does_not_have_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        HSTU.fit(tiny_data(), HSTUConfig(**settings))


def test_other_behaviours_than_the_datas_are_refused():
    with pytest.raises(ValueError, match="behaviours is .*'click'.*, but the data has .*'view', 'cart', 'buy'"):
        HSTU.fit(store_with_behaviours(9), HSTUConfig(behaviours=["click", "buy"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": "mixed"}, "tokens 'mixed' is not one of merged, interleaved"),
        ({"tokens": "interleaved"}, "an interaction is one token: name columns or behaviours"),
        ({"behaviours": ["buy"]}, "one kind of interaction says nothing"),
        ({"columns": "brand"}, "columns is 'brand', it should be a list of names"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        HSTUConfig(**settings)


def test_a_blend_and_the_choice_of_settings_tell_times(tmp_path):
    data = store_with_times()
    hstu = HSTU.fit(data, config(max_epochs=40))
    assert validation_ndcg(hstu, data, True) > 0.95
    folders = {"hstu": hstu, "popularity": Popularity.fit(data)}
    for name, one in folders.items():
        one.save_pretrained(tmp_path / name, {"data_fingerprint": data.fingerprint})
    paths = {name: str(tmp_path / name) for name in folders}
    blend = Blend.fit(data, BlendConfig(paths, depth=10, exclude_seen="true"))
    assert blend.timed and blend.config.weights["hstu"] > 0.5
    found = evaluate(blend, data.test, data, "blend", bootstrap=0, exclude_seen=True).metrics["recall@1"]
    assert found > 0.95, "the weights were chosen, and the lists are asked for, with times"
    among = Restricted(hstu, ["soon", "late"])
    assert evaluate(among, data.test, data, "cold items only", bootstrap=0).metrics["recall@1"] > 0.95
    histories, known = requests_of(blend, with_times(blend, data.test.slice(0, 5), data))
    assert blend.recommend(histories, **known) != blend.recommend(histories)
    with pytest.raises(ValueError, match="behaviour: no member of this blend reads them"):
        blend.recommend(histories, behaviour="buy")
