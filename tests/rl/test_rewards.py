"""Rewards: the worked example of every docstring, the gold item on random catalogues, and what users get wrong."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_data, tiny_index

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import SEQUENCES
from llmrec.instructions import TASKS, task_rows
from llmrec.recommenders.sasrec import SASRec, SASRecConfig, SASRecModel
from llmrec.rl import REWARDS, Facts, load_rewards
from llmrec.rl.rewards import checked

GROUP = ["w1", "t", "w2", "w3"]
# `w1` shares the first code of `t`, `w2` the first two, `w3` none; `w` stands for any other item.
CODES = {"t": (3, 4, 5), "w1": (3, 9, 9), "w2": (3, 4, 9), "w3": (1, 4, 5), "w": (0, 0, 0), "x": (0, 1, 0)}
OF_TARGET = ("exact_hit", "rank_penalty", "prefix_match", "semantic_similarity", "popularity_corrected_hit")


def index_of(codes: dict[str, tuple] | list[tuple[str, tuple]]) -> SemIDIndex:
    rows = list(codes.items()) if isinstance(codes, dict) else codes
    depth = max(len(semid) for _, semid in rows)
    matrix = np.array([[*semid, *[-1] * (depth - len(semid))] for _, semid in rows])
    return SemIDIndex([item for item, _ in rows], matrix, [10] * depth)


def facts_of(codes=CODES, sequences: list[list[str]] = (), columns: dict | None = None, **more) -> Facts:
    index = index_of(codes)
    rows = range(len(sequences))
    train = pa.table(
        {
            "user_id": [str(row) for row in rows],
            "item_ids": list(sequences),
            "timestamps": [[None] * len(one) for one in sequences],
            "num_context": [0 for _ in rows],
        },
        schema=SEQUENCES,
    )
    return Facts(index, pa.table({"item_id": index.items, **(columns or {})}), train, **more)


def write_features(path, matrix) -> str:
    np.save(path, np.asarray(matrix, np.float32))
    return str(path)


def ask(reward, item: list[str], groups: int = 1, **columns) -> list:
    """As TRL asks: everything by keyword, one entry per completion."""
    size = len(item) // groups
    known = {"prompts": ["p"] * len(item), "completions": ["c"] * len(item), "completion_ids": [[1]] * len(item)}
    return reward(**known, item=item, rank=list(range(size)) * groups, trainer_state=None, **columns)


def of_group(name: str, facts: Facts, **columns) -> list:
    return ask(REWARDS[name](facts), GROUP, **{"target": ["t"] * 4, "history": [[]] * 4, **columns})


# The worked examples


def test_exact_hit():
    assert of_group("exact_hit", facts_of()) == [0, 1, 0, 0]
    assert of_group("exact_hit", facts_of({**CODES, "w2": CODES["t"]})) == [0, 1, 1, 0], "they share a Semantic ID"


def test_rank_penalty():
    found = of_group("rank_penalty", facts_of())
    assert found == pytest.approx([-0.390, 0, -0.195, -0.168], abs=5e-4)
    assert ask(REWARDS["rank_penalty"](facts_of()), ["w1", "w2", "w3"], target=["t"] * 3) == [0, 0, 0]


def test_prefix_match():
    assert of_group("prefix_match", facts_of()) == pytest.approx([1 / 3, 1, 2 / 3, 0])


def test_of_several_semantic_ids_of_a_target_the_best_counts():
    """Whatever their order; what counts of an item is what was said of it, where that is known."""
    rows = [
        ("t", (3, 4, 5)),
        ("t", (1, 2, 5)),
        ("w1", (1, 9, 9)),
        ("w1", (1, 2, 9)),
        ("w2", (3, 9, 9)),
        ("w3", (7, 7, 7)),
    ]
    for codes in (rows, rows[::-1]):
        facts = facts_of(codes)
        assert of_group("prefix_match", facts) == pytest.approx([2 / 3, 1, 1 / 3, 0])
        said = {
            "semid": [
                ("<a_1>", "<b_9>", "<c_9>"),
                ("<a_1>", "<b_2>", "<c_5>"),
                ("<a_3>", "<b_9>", "<c_9>"),
                ("<a_7>",),
            ]
        }
        assert of_group("prefix_match", facts, **said) == pytest.approx([1 / 3, 1, 1 / 3, 0])
        assert of_group("diversity", facts, **said) == [0.5, 0.5, 1, 1]
        assert of_group("exact_hit", facts) == [0, 1, 0, 0]


def test_semantic_similarity(tmp_path):
    cosines = {"t": 1, "w1": 0.4, "w2": 0.8, "w3": -0.1, "w": 0, "x": 0}
    matrix = [[n * c, n * (1 - c * c) ** 0.5] for n, c in enumerate((cosines[item] for item in CODES), start=1)]
    facts = facts_of(features=write_features(tmp_path / "features.npy", matrix))
    assert of_group("semantic_similarity", facts) == pytest.approx([0.4, 1, 0.8, -0.1], abs=1e-6)


def test_collaborative(tmp_path):
    ids, config = [f"item-{n}" for n in range(101)], SASRecConfig(max_length=4, hidden_size=8)
    sasrec = SASRec(SASRecModel(101, config), pa.table({"item_id": ids}), np.zeros(101, np.int64), config)
    sasrec.save_pretrained(tmp_path / "sasrec")
    history = ["item-5", "item-60"]
    places = [found.item_id for found in sasrec.recommend([history], k=101)[0]]
    facts = facts_of(
        {item: (n % 10, n // 10 % 10, n // 100) for n, item in enumerate(ids)}, sasrec=str(tmp_path / "sasrec")
    )
    group = [places[place - 1] for place in (1, 3, 11, 101)]
    assert ask(REWARDS["collaborative"](facts), group, history=[history] * 4) == pytest.approx([1, 0.98, 0.9, 0])


def test_popularity_corrected_hit():
    facts = facts_of(sequences=[["t", "w1", "t"], ["t"] * 5, ["w3", "t"]])
    assert of_group("popularity_corrected_hit", facts) == pytest.approx([0, 1 / 3, 0, 0])
    assert of_group("popularity_corrected_hit", facts_of()) == [0, 1, 0, 0], "it was never seen"


def test_diversity():
    codes = {"a": (5, 0), "b": (5, 1), "c": (7, 0), "d": (9, 0)}
    assert ask(REWARDS["diversity"](facts_of(codes)), ["a", "b", "c", "d"]) == [0.5, 0.5, 1, 1]
    assert ask(REWARDS["diversity"](facts_of(codes)), ["a", "c", "b", "a"], groups=2) == [1, 1, 0.5, 0.5]


def test_wish_satisfied():
    prices = {"t": 25.0, "w1": 15.0, "w2": 19.0, "w3": 40.0, "w": None, "x": 20.0}
    facts = facts_of(columns={"title": ["it"] * 6, "categories": ["Tools"] * 6, "price": list(prices.values())})
    wish = {"wish": ["cheaper"] * 4, "about": ["x"] * 4, "target": [None] * 4}
    assert of_group("wish_satisfied", facts, **wish) == [1, 0, 1, 0]


def test_beam_match():
    beams = [["w", "w"], ["w", "t"], ["w1", "w"], ["w2", "w"]]
    assert of_group("beam_match", facts_of(), beams=beams) == pytest.approx([0, 1, 1 / 3, 2 / 3])
    assert of_group("beam_match", facts_of()) == [None] * 4


def test_thought_format():
    said = {"thought": ["They like drills.", "", "It is", "Tools."], "closed": [True, True, False, True]}
    assert of_group("thought_format", facts_of(), **said) == [1, 0, 0, 1]
    assert of_group("thought_format", facts_of()) == [None] * 4


def test_thought_length():
    shares = [tokens / 128 for tokens in (32, 0, 128, 64)]
    assert of_group("thought_length", facts_of(), thought_share=shares) == [0.75, 1, 0, 0.5]
    assert of_group("thought_length", facts_of()) == [None] * 4


# What maximises them


@pytest.fixture(scope="module")
def features_path(tmp_path_factory):
    return tmp_path_factory.mktemp("features") / "features.npy"


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_gold_item_maximises_every_reward_of_a_target(features_path, seed):
    """On random catalogues (ragged Semantic IDs, shared ones, any rank of the gold item); ties are allowed."""
    rng = np.random.default_rng(seed)
    number, groups = int(rng.integers(2, 12)), int(rng.integers(1, 4))
    size = int(rng.integers(1, number)) + 1
    ids = [f"item-{n}" for n in range(number)]
    codes = {item: tuple(rng.integers(0, 3, rng.integers(1, 4)).tolist()) for item in ids}
    sequences = [[ids[i] for i in rng.integers(0, number, 5)] for _ in range(rng.integers(0, 5))]
    features = write_features(features_path, rng.normal(size=(number, 4)) * (rng.random((number, 1)) < 0.9))
    facts = facts_of(codes, sequences, features=features)
    members = [rng.permutation(number)[:size] for _ in range(groups)]
    gold = [int(rng.integers(size)) for _ in members]
    item = [ids[i] for group in members for i in group]
    target = [ids[group[place]] for group, place in zip(members, gold) for _ in group]
    for name in OF_TARGET:
        found = np.reshape(ask(REWARDS[name](facts), item, groups, target=target), (groups, size))
        assert np.isfinite(found).all()
        for rewards, place in zip(found, gold):
            assert rewards[place] >= rewards.max() - 1e-6, name


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_group_of_all_different_first_codes_is_the_most_diverse(seed):
    rng = np.random.default_rng(seed)
    ids = [f"item-{n}" for n in range(12)]
    reward = REWARDS["diversity"](facts_of({item: (n % 4, n // 4) for n, item in enumerate(ids)}))
    group = rng.permutation(12)[:4]
    found = ask(reward, [ids[n] for n in group])
    distinct = len({n % 4 for n in group})
    assert sum(found) == pytest.approx(distinct) and max(found) <= 1
    assert (sum(found) == 4) == (distinct == 4)


# SASRec and wishes on the tiny catalogue


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def walked(data, tmp_path_factory):
    """The facts of the tiny catalogue with a SASRec that learned that items follow each other."""
    config = SASRecConfig(max_length=8, hidden_size=32, dropout=0.1, learning_rate=1e-2, batch_size=16, max_epochs=20)
    folder = tmp_path_factory.mktemp("sasrec") / "sasrec"
    SASRec.fit(data, config).save_pretrained(folder)
    return Facts(tiny_index(data), data.items, data.train, sasrec=str(folder))


def test_what_sasrec_ranks_first_maximises_the_collaborative_reward(walked):
    reward, sasrec = REWARDS["collaborative"](walked), SASRec.from_pretrained(walked.sasrec)
    histories = [["item-03", "item-04"], ["item-20"], []]
    ranked = [[found.item_id for found in one] for one in sasrec.recommend(histories, k=24)]
    assert ranked[0][0] == "item-05" and ranked[1][0] == "item-21"
    whole = ask(reward, sum(ranked, []), 3, history=[history for history in histories for _ in range(24)])
    np.testing.assert_allclose(np.reshape(whole, (3, 24))[:2], [np.linspace(1, 0, 24)] * 2)
    assert all(one[0] == max(one) for one in np.reshape(whole, (3, 24)))
    # Each group has its own history.
    mixed = ask(reward, ["item-05", "item-21"] * 2, 2, history=[histories[0]] * 2 + [histories[1]] * 2)
    assert mixed[0] == mixed[3] == 1 and max(mixed[1], mixed[2]) < 1


def test_wishes_are_checked_against_the_columns_of_the_items(data):
    """Item n is red, green or blue (n % 3), of brand n % 4 and costs n."""
    reward = REWARDS["wish_satisfied"](Facts(tiny_index(data), data.items, data.train))
    rows = [
        ("cheaper", "item-12", {0, 3, 6, 9}),
        ("pricier", "item-12", {15, 18, 21}),
        ("cheaper & other_brand", "item-12", {3, 6, 9}),
        ("same_brand", "item-12", {4, 8, 16, 20}),
        ("brand=brand 1", None, set(range(1, 24, 4))),
        ("category=green & below=9", None, {1, 4, 7}),
    ]
    ids = data.items["item_id"].to_pylist()
    wish, about = ([row[n] for row in rows for _ in ids] for n in (0, 1))
    found = np.reshape(ask(reward, ids * len(rows), len(rows), wish=wish, about=about), (len(rows), 24))
    assert set(found.ravel()) == {0.0, 1.0}
    assert [set(np.flatnonzero(one).tolist()) for one in found] == [row[2] for row in rows]
    some = ask(reward, ids[:4], 2, wish=["brand=brand 1", "brand=brand 1", None, None], about=[None] * 4)
    assert some == [0, 1, None, None], "a row without a wish says nothing"
    assert ask(reward, ids[:2]) == [None, None]


@pytest.mark.parametrize("task", ["next_item", "title_to_item", "like_but", "history_wish_to_item", "conversation"])
def test_rewards_judge_as_the_task_does(data, task):
    """Every row with its own answer and that of another row."""
    facts = Facts(tiny_index(data), data.items, data.train)
    rows = task_rows(task, data, 4)
    name = "wish_satisfied" if "wish" in rows[0] else "exact_hit"
    pairs = [(row, other["targets"][0]) for n, row in enumerate(rows) for other in (row, rows[n - 1])]
    columns = {column: [row.get(column) for row, _ in pairs] for column in ("wish", "about")}
    target = [row["targets"][0] for row, _ in pairs]
    rewards = ask(REWARDS[name](facts), [answer for _, answer in pairs], len(rows), target=target, **columns)
    assert rewards == [TASKS[task].score(facts.catalogue, *pair) for pair in pairs]
    assert rewards[::2] == [1] * len(rows) and min(rewards) < 1


# Rows


@pytest.mark.parametrize("name", ["exact_hit", "rank_penalty", "prefix_match", "popularity_corrected_hit"])
def test_equal_histories_keep_their_own_targets(name):
    """MiniOneRec finds targets by the text of the prompt, so that the last row with a history decides for all."""
    reward = REWARDS[name](facts_of())
    found = ask(reward, ["t", "w3"] * 2, 2, target=["t", "t", "w3", "w3"], history=[["x"]] * 4)
    assert found[0] > found[1] and found[3] > found[2]
    swapped = ask(reward, ["t", "w3"] * 2, 2, target=["w3", "w3", "t", "t"], history=[["x"]] * 4)
    assert swapped[1] > swapped[0] and swapped[2] > swapped[3]


def test_rows_without_a_target_say_nothing(tmp_path):
    facts = facts_of(features=write_features(tmp_path / "features.npy", np.eye(6)))
    for name in OF_TARGET:
        found = ask(REWARDS[name](facts), ["t", "w1", "t", "w1"], 2, target=[None, None, "t", "t"])
        assert found[:2] == [None, None] and found[2] > found[3], name
    found = ask(REWARDS["beam_match"](facts), ["t", "t"], 2, target=[None, "t"], beams=[["t"], ["t"]])
    assert found == [None, 1]


def test_items_are_compared_by_their_first_semantic_id():
    facts = facts_of([("a", (1, 2)), ("b", (3, 4)), ("b", (1, 2)), ("c", (3, 4))])
    assert ask(REWARDS["exact_hit"](facts), ["a", "b", "c"], target=["b"] * 3) == [0, 1, 1]


def test_codes_of_different_levels_are_different():
    """A level without a code takes no place in a Semantic ID, but `<a_3><c_5>` is not `<a_3><b_5>`."""
    facts = facts_of({"a": (3, -1, 5), "b": (3, 5, -1), "c": (3, 5, 5)})
    assert ask(REWARDS["exact_hit"](facts), ["a", "b", "c"], target=["a"] * 3) == [1, 0, 0]
    assert ask(REWARDS["prefix_match"](facts), ["a", "b", "c"], target=["b"] * 3) == [0.5, 1, 1]


# By name and by path


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(
        "def length(completion_ids, **kwargs):\n"
        "    return [len(ids) for ids in completion_ids]\n"
        "def popular(facts):\n"
        "    def reward(item, **kwargs):\n"
        "        return [facts.popularity[one] for one in item]\n"
        "    return reward\n"
        "number = 3\n"
    )
    (tmp_path / "broken_rewards.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_rewards_by_name_and_by_path_with_their_weights(own):
    facts = facts_of(sequences=[["w1", "t", "t"]])
    entries = ["exact_hit", "prefix_match:0.5", "own_rewards.length:-2", "own_rewards.popular:1e-1"]
    rewards, weights = load_rewards(entries, facts)
    assert weights == [1, 0.5, -2, 0.1]
    assert [reward.__name__ for reward in rewards] == ["exact_hit", "prefix_match", "length", "popular"]
    found = [ask(reward, ["t", "w1"], target=["t", "t"]) for reward in rewards]
    assert found == [[1, 0], [1, pytest.approx(1 / 3)], [1, 1], [2, 1]]


def test_every_name_loads(walked, data, tmp_path):
    features = write_features(tmp_path / "features.npy", np.eye(24))
    facts = Facts(walked.index, data.items, data.train, features, walked.sasrec)
    rewards, weights = load_rewards(list(REWARDS), facts)
    assert [reward.__name__ for reward in rewards] == list(REWARDS) and weights == [1] * len(REWARDS)
    columns = {"target": ["item-01"] * 2, "history": [["item-00"]] * 2}
    for reward in rewards:
        assert len(ask(reward, ["item-01", "item-02"], **columns)) == 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "rewards is empty: name some of exact_hit, rank_penalty"),
        (["hit"], "reward 'hit' is not one of exact_hit, .*, nor a dotted path"),
        (["exact_hit:much"], "'much' in 'exact_hit:much' is not a weight"),
        (["exact_hit:nan"], "'nan' in 'exact_hit:nan' is not a weight"),
        ([{"exact_hit": 2}], "{'exact_hit': 2} is not text; write name:weight without a space"),
        (["exact_hit", "diversity", "exact_hit:2"], "rewards names one twice: exact_hit, diversity, exact_hit"),
        (["own_rewards.breadth"], "reward 'own_rewards.breadth' cannot be imported: .*breadth"),
        (["own_rewards.number"], "reward 'own_rewards.number' is int, no function"),
        (["no_such_module.reward"], "reward 'no_such_module.reward' cannot be imported: .*no_such_module"),
        (["broken_rewards.reward"], "reward 'broken_rewards.reward' cannot be imported: .*nothing_of_this_name"),
        (["semantic_similarity"], "semantic_similarity needs `features`"),
        (["collaborative"], "collaborative needs `sasrec`"),
    ],
    ids=str,
)
def test_entries_that_name_nothing_are_refused(own, entries, said):
    with pytest.raises(ValueError, match=said):
        load_rewards(entries, facts_of())


def test_features_of_another_catalogue_are_refused(tmp_path):
    path = write_features(tmp_path / "features.npy", np.eye(4))
    with pytest.raises(ValueError, match="features.npy has 4 rows, but the catalogue has 6 items"):
        load_rewards(["semantic_similarity"], facts_of(features=path))


def test_an_item_that_sasrec_does_not_know_is_named(walked):
    with pytest.raises(ValueError, match="reward 'collaborative' failed: .*'t' is not in the catalogue"):
        reward = checked(REWARDS["collaborative"](walked), "collaborative")
        ask(reward, ["t"], history=[["item-01"]])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda item: [1 / 0 for _ in item], "failed: ZeroDivisionError: division by zero"),
        (lambda item: [0.0, float("nan")], "is nan for completion 1"),
        (lambda item: [float("inf"), 0.0], "is inf for completion 0"),
        (lambda item: [1.0], "returned 1 values for 2 completions"),
        (lambda item: [1.0] * 3, "returned 3 values for 2 completions"),
        (lambda item: 1.0, "returned float for 2 completions: a list with one for each"),
        (lambda item: None, "returned NoneType for 2 completions"),
        (lambda item: np.ones(2), "returned ndarray for 2 completions"),
        (lambda item: ["good", "bad"], "is 'good' for completion 0, no finite number"),
    ],
)
def test_what_a_reward_does_wrong_is_an_error_with_its_name(values, said):
    reward = checked(lambda item, **kwargs: values(item), "my.reward")
    assert reward.__name__ == "reward"
    with pytest.raises(ValueError, match=f"reward 'my.reward' {said}"):
        ask(reward, ["t", "w1"])


def test_what_a_reward_may_say():
    reward = checked(lambda item, **kwargs: [None, 1, 0.5, True, np.float32(2), -3], "mine")
    assert ask(reward, ["t"] * 6) == [None, 1, 0.5, True, 2, -3]
