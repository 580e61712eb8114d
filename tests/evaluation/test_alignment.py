"""The alignment report says what is true: of a model that was trained, of one that was not, and figure by figure."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from tiny import MODEL, tiny_data, tiny_index, tiny_model, write_tiny_base

from llmrec.catalogue.semids import SemIDIndex
from llmrec.evaluation.alignment import SECTIONS, Aligner, alignment_prompts
from llmrec.evaluation.alignment_sections import (
    LeftOut,
    Sample,
    best_items,
    common_prefixes,
    retrieval,
    steering,
    wish_rows,
)
from llmrec.evaluation.bootstrap import paired_difference
from llmrec.evaluation.report import alignment_tables
from llmrec.features.text_encoders import TfidfEncoder, item_text
from llmrec.instructions import TASKS, Catalogue, Prompt, Renderer, Template, build_dataset, load_prompt
from llmrec.instructions.item_words import same_text, token_f1
from llmrec.instructions.mixture import TaskMix
from llmrec.instructions.tasks.conversation import explanation, wish_slots
from llmrec.instructions.wishes import Wishes, kinds_of
from llmrec.models.folder import RecommenderConfig
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.recommenders import LLMRecommender
from llmrec.rl import REWARDS, Facts

# Short wordings, so that a tiny model learns them in seconds
PROMPTS = {
    "title_to_item": Prompt("title_to_item", (Template("{title}", "{item}"),)),
    "item_to_title": Prompt("item_to_title", (Template("title {item}", "{title}"),)),
    "steering": Prompt(
        "like_but", (Template("{item} {wish}", "{target}"),), (Template("{wish} than {item}", "{target}"),)
    ),
    "explanation": Prompt("explain", (Template("why {item}", "{explanation}"),)),
    "robustness": Prompt(
        "next_item",
        (Template("after {history}", "{target}"), Template("{history} then", "{target}")),
        (Template("so far {history}", "{target}"),),
    ),
}


def recommender_of(data, index, model, tokenizer, prompt, **config) -> LLMRecommender:
    settings = RecommenderConfig.of(data, index, prompt=prompt.to_dict(), num_beams=12, **config)
    return LLMRecommender(model.eval(), tokenizer, index, data.items, settings)


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompt in PROMPTS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(prompt.to_dict()))
    return {name: str(folder / f"{name}.yaml") for name in PROMPTS}


@pytest.fixture(scope="module")
def trained():
    """A model of one layer that has learned five tasks about 12 items, and its data."""
    data = tiny_data(12, 20)
    index = tiny_index(data, ragged=False)
    catalogue = Catalogue(index, data.items)
    titles = dict(zip(index.items, data.items["title"].to_pylist()))
    words = [*titles.values(), *(explanation(catalogue, [], item) for item in index.items)]
    tokenizer = train_tokenizer(words * 3000, 600)
    model = model_from_config({**MODEL, "num_hidden_layers": 1}, tokenizer)
    extend_vocabulary(model, tokenizer, index, "mean", texts=titles)
    weights = {"title_to_item": 4, "item_to_title": 8, "explanation": 3}
    mixture = [TaskMix(prompt, weights.get(name, 1)) for name, prompt in PROMPTS.items()]
    rows = build_dataset(data, mixture, Renderer(tokenizer, catalogue), 3, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / 300))
    draw = np.random.default_rng(0)
    for _ in range(300):
        batch = rows.__getitems__(draw.choice(len(rows), 32, replace=False))
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in batch], True, value)
            for name, value in (("input_ids", tokenizer.pad_token_id), ("labels", -100))
        )
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return data, recommender_of(data, index, model, tokenizer, PROMPTS["robustness"], max_history=3)


@pytest.fixture(scope="module")
def untrained():
    """72 items, 24 to a category, so that wishes have many answers; a random model."""
    data = tiny_data(72)
    number = np.arange(72)
    codes = np.stack([number % 6, number // 6 % 6, number // 36], 1)
    index = SemIDIndex(data.items["item_id"].to_pylist(), codes, [6, 6, 4])
    model, tokenizer = tiny_model(data, index, num_hidden_layers=1)
    return data, recommender_of(data, index, model, tokenizer, PROMPTS["robustness"])


def test_a_trained_model_shows_what_it_learned(trained, prompt_files):
    data, recommender = trained
    report = Aligner(prompt_files)(recommender, Sample(data, data.test, 50, text_encoder="tfidf"))
    figures = {name: section["figures"] for name, section in report["sections"].items()}
    assert figures["title_to_item"]["exact"] > 0.9 and figures["title_to_item"]["recall@10"] > 0.9
    assert figures["title_to_item"]["prefix@1"] >= figures["title_to_item"]["prefix@2"] > 0.9
    assert figures["item_to_title"]["token F1"] > 0.8
    assert figures["robustness"]["recall@10 trained min"] > 0.9
    told = figures["explanation"]
    assert told["coverage"] > 0.9 and told["faithfulness"] > told["of another item"] + 0.2
    assert "description" in report["left_out"]["description_to_item"] and "general_text" in report["left_out"]
    again = Aligner(prompt_files)(recommender, Sample(data, data.test, 50, text_encoder="tfidf"))
    assert again == report  # seeded
    assert json.loads(json.dumps(report)) == report


def test_a_random_model_is_near_chance(untrained, prompt_files):
    data, recommender = untrained
    sections = Aligner(prompt_files)(recommender, Sample(data, data.test, 72, text_encoder="tfidf"))["sections"]
    assert sections["title_to_item"]["figures"]["exact"] < 0.1
    assert abs(sections["title_to_item"]["figures"]["recall@10"] - 10 / 72) < 0.1
    assert sections["item_to_title"]["figures"]["exact"] == 0
    steered = sections["steering"]["all"]["figures"]
    assert abs(steered["precision@10"] - steered["chance"]) < 0.15


def exhaustive(recommender, text: str) -> list[str]:
    """All items by the log-probability of their Semantic ID after a text."""
    scores = {}
    tokenizer = recommender.tokenizer
    start = tokenizer(text, add_special_tokens=False)["input_ids"]
    for item in recommender.index.items:
        semid = tokenizer(recommender.index.encode(item), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = recommender.model(torch.tensor([start + semid])).logits[0, len(start) - 1 : -1]
        scores[item] = logits.log_softmax(-1).gather(1, torch.tensor(semid)[:, None]).sum().item()
    return sorted(scores, key=scores.get, reverse=True)


def test_steering_by_hand(untrained):
    data, recommender = untrained
    recommender = recommender_of(
        data, recommender.index, recommender.model, recommender.tokenizer, PROMPTS["robustness"]
    )
    recommender.config.num_beams = 72  # every SemID: the beam search is exhaustive
    prompt, sample = PROMPTS["steering"], Sample(data, data.test, 3, seed=1, bootstrap=20)
    rows = wish_rows(Wishes(data.items), set(recommender.index.items), sample)
    column = {name: dict(zip(data.items["item_id"].to_pylist(), data.items[name].to_pylist()))
              for name in ("categories", "brand", "price", "title")}  # fmt: skip

    def satisfies(wish: str, item: str, about: str) -> bool:
        checks = {
            "cheaper": column["price"][item] < column["price"][about],
            "pricier": column["price"][item] > column["price"][about],
            "other_brand": column["brand"][item] != column["brand"][about],
            "with": wish.partition("=")[2] in column["title"][item].split(),
        }
        same = column["categories"][item] == column["categories"][about]
        return item != about and same and all(checks[part.partition("=")[0]] for part in wish.split(" & "))

    wished, following, enough = [], [], []
    for row in rows:
        assert Wishes(data.items).held_out(row["wish"], row["about"])
        right = [item for item in recommender.index.items if satisfies(row["wish"], item, row["about"])]
        phrase = wish_slots(recommender.renderer.catalogue, {"history": [], "targets": [], **row}, "")["wish"]
        asked = exhaustive(recommender, f"<|user|>{phrase} than {recommender.index.encode(row['about'])}<|assistant|>")
        after = exhaustive(recommender, f"<|user|>after {recommender.index.encode(row['about'])}<|assistant|>")
        asked.remove(row["about"]), after.remove(row["about"])  # what is asked about is no answer
        wished.append(len(set(asked[:10]) & set(right)) / 10)
        following.append(len(set(after[:10]) & set(right)) / 10)
        enough.append(len(right) >= 10)
    found = steering(recommender, prompt, sample)
    assert 0 < sum(enough) < len(rows) == found["all"]["rows"] and found["rows"] == sum(enough)
    assert found["all"]["figures"]["precision@10"] == pytest.approx(np.mean(wished))
    assert found["all"]["figures"]["sequential@10"] == pytest.approx(np.mean(following))
    assert found["figures"]["precision@10"] == pytest.approx(np.mean(np.array(wished)[enough]))
    assert found["figures"]["sequential@10"] == pytest.approx(np.mean(np.array(following)[enough]))
    assert found["wordings"] == "unseen" and set(found["kinds"]) == {kinds_of(row["wish"]) for row in rows}


def test_search_in_unseen_wordings_and_by_content_by_hand(untrained):
    data, recommender = untrained
    recommender = recommender_of(
        data, recommender.index, recommender.model, recommender.tokenizer, PROMPTS["robustness"]
    )
    recommender.config.num_beams = 72  # every SemID: the beam search is exhaustive
    unseen = Template("have you {query} ?", "{target}"), Template("{query} please", "{target}")
    prompt = Prompt("query_to_item", (Template("find {query}", "{target}"),), unseen)
    sample = Sample(data, data.test, 24, bootstrap=200, text_encoder="tfidf")
    ids, titles = data.items["item_id"].to_pylist(), data.items["title"].to_pylist()
    encoder = TfidfEncoder().fit(texts := item_text(data.items))
    vectors = encoder.encode(texts)
    found = {"recall@10": [], "recall@10, unseen wordings": [], "recall@10, content": []}
    for number, row in enumerate(sample.of_task("query_to_item", recommender)):
        query = " ".join(titles[ids.index(row["about"])].split()[:3])  # the first of the composed queries
        asked = "find {}", ("have you {} ?", "{} please")[number % 2]
        lists = [exhaustive(recommender, f"<|user|>{text.format(query)}<|assistant|>") for text in asked]
        near = (vectors @ encoder.encode([query])[0]).round(5).tolist()
        lists.append([ids[place] for place in sorted(range(72), key=lambda place: (-near[place], place))])
        for recalls, items in zip(found.values(), lists):
            recalls.append(row["about"] in items[:10])
    result = SECTIONS["search"].score(recommender, prompt, sample)
    means = {name: np.mean(recalls) for name, recalls in found.items()}
    assert {name: result["figures"][name] for name in found} == pytest.approx(means)
    assert 0.1 < means["recall@10, content"] < 1
    difference = "recall@10, unseen minus content"
    ours, content = map(np.array, [*found.values()][1:])
    assert result["figures"][difference] == pytest.approx(ours.mean() - content.mean())
    paired = paired_difference(ours[:, None], content[:, None], None, 200)
    assert result["ci"][difference] == pytest.approx([paired["low"][0], paired["high"][0]])
    assert result["figures"]["recall@1, content"] <= means["recall@10, content"]


def test_the_report_judges_as_the_rewards_do(untrained):
    data, recommender = untrained
    sample, items = Sample(data, data.test, 9, bootstrap=0, text_encoder="tfidf"), recommender.index.items
    facts = Facts(recommender.index, data.items, data.train)

    def judged(reward: str, rows: list[dict], answers: list[list], **columns) -> list[float]:
        pairs = [(row, items[hit.item]) for row, hits in zip(rows, answers) for hit in hits]
        columns |= {name: [row.get(name) for row, _ in pairs] for name in ("wish", "about")}
        target = [row["targets"][0] if row["targets"] else None for row, _ in pairs]
        return REWARDS[reward](facts)(item=[item for _, item in pairs], target=target, **columns)

    prompt = PROMPTS["steering"]
    rows = wish_rows(Wishes(data.items), set(items), sample)
    answers = best_items(recommender, prompt, rows, prompt.unseen)
    satisfied = judged("wish_satisfied", rows, answers)
    assert 0 < sum(satisfied) < len(satisfied) == 10 * len(rows)
    steered = steering(recommender, prompt, sample)["all"]["figures"]
    assert steered["precision@10"] == pytest.approx(np.mean(satisfied))
    prompt = PROMPTS["title_to_item"]
    sample = dataclasses.replace(sample, rows=72)
    rows = sample.of_task(prompt.task, recommender)
    answers = best_items(recommender, prompt, rows)
    hits = judged("exact_hit", rows, [hits[:1] for hits in answers])
    exact = SECTIONS["title_to_item"].score(recommender, prompt, sample)["figures"]["exact"]
    assert exact == pytest.approx(np.mean(hits)) and 0 < sum(hits) < 72


def test_recall_counts_items_that_share_a_semantic_id(untrained):
    data, recommender = untrained
    recommender = recommender_of(
        data,
        recommender.index.replaced(recommender.index.item_ids, np.minimum(recommender.index.codes, [5, 5, 0])),
        recommender.model,
        recommender.tokenizer,
        PROMPTS["robustness"],
    )
    # Items 0 and 36 share one: whichever stands first, the target is expected at place 1 half of the time.
    found = retrieval(recommender, [[36, 0, 1], [5, 6, 36, 0]], ["item-00", "item-00"], (1, 10))
    assert found["recall@1"].tolist() == [0.5, 0] and found["recall@10"].tolist() == [1, 1]


def test_scores_by_hand():
    assert token_f1("red gadget number 3", "Red gadget, number 4") == pytest.approx(0.75)
    assert token_f1("", "a") == token_f1("b", "a") == 0 and token_f1("a a", "a") == pytest.approx(2 / 3)
    assert same_text(" Red  gadget", "red gadget") and not same_text("red", "red gadget")
    wanted = np.array([[1, 2, 3], [1, 5, -1]])
    assert common_prefixes(np.array([1, 2, 4]), wanted).tolist() == [True, True, False]
    assert common_prefixes(np.array([1, 5, -1]), wanted).tolist() == [True, True, True]
    assert common_prefixes(np.array([0, 2, 3]), wanted).tolist() == [False, False, False]  # later levels do not count


def test_faithful_and_unfaithful_explanations():
    items = pa.table(
        {
            "item_id": ["tent", "bike", "pen"],
            "brand": ["Acme Kids", "Acme", None],
            "categories": ["Outdoor > Tents", "Sports > Bikes | Toys > Kids Bikes", None],
            "price": [10.0, 1250.5, None],
        }
    )
    catalogue = Catalogue(SemIDIndex(["tent", "bike", "pen"], np.arange(3)[:, None], [3]), items)
    attributes, score = catalogue.attributes, TASKS["explain"].score

    def faithful(text: str, item: str) -> float:
        return score(catalogue, {"about": item}, text)

    assert attributes.named("It is Tents by Acme Kids for $10.00.") == {"Tents", "Acme Kids", "$10.00"}
    assert faithful("It is Tents by Acme Kids for $10.00.", "tent") == 1
    assert faithful("It is Tents by Acme Kids for $10.00.", "bike") == 0
    assert faithful("Kids Bikes by Acme for $1,250.50", "bike") == 1  # not Bikes, not Acme Kids
    assert faithful("Toys by Acme for $9.99", "bike") == pytest.approx(2 / 3)
    assert attributes.named("Acmes tents, outdoors") == set()
    assert faithful("It goes with what you chose.", "tent") == 0
    assert faithful("It goes with what you chose.", "pen") == 1  # nothing is known of it
    assert faithful("Tents", "pen") == 0


def test_answers_in_words_do_not_depend_on_the_batch(trained):
    _, recommender = trained
    rows = [{"about": item, "history": [], "targets": []} for item in recommender.index.items]
    titles = recommender.generate_text(PROMPTS["item_to_title"], rows, 12)
    assert titles == [recommender.generate_text(PROMPTS["item_to_title"], [row], 12)[0] for row in rows]
    texts = recommender.task_prompts(PROMPTS["item_to_title"], rows)
    texts[3] = texts[3].replace("title", "title number gadget")  # of another length: padded
    prompts = recommender.token_ids(texts)
    assert [*recommender.write(prompts, 12)] == [next(recommender.write([ids], 12)) for ids in prompts]
    assert len(recommender.search(prompts[:2], [4, 4])[0]) == 4


def test_what_cannot_be_asked_is_left_out_or_refused(untrained, tmp_path):
    data, recommender = untrained
    bare = dataclasses.replace(data, items=data.items.select(["item_id", "title"]))
    sample = Sample(bare, data.test, 4, bootstrap=0)
    for name in ("steering", "explanation", "description_to_item"):
        with pytest.raises(LeftOut, match="no|column"):
            SECTIONS[name].score(recommender, load_prompt(SECTIONS[name].task), sample)
    with pytest.raises(ValueError, match="typo.*steering"):
        alignment_prompts({"typo": "next_item"})
    with pytest.raises(ValueError, match="'steering' asks task 'like_but', not task 'next_item'"):
        alignment_prompts({"steering": "next_item"})
    with pytest.raises(ValueError, match="'robustness'.*after a history, not task 'like_but'"):
        alignment_prompts({"robustness": "like_but"})
    with pytest.raises(ValueError, match="gone.txt"):
        Aligner(general_text=tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="str: only a language model"):
        Aligner()("sasrec", sample)


def test_the_recipe_writes_and_prints_it(monkeypatch, tmp_path, capsys):
    data = tiny_data()
    data.save(tmp_path / "data")
    base = write_tiny_base(tmp_path / "model", data, tiny_index(data), "next_item", num_hidden_layers=1)
    (tmp_path / "general.txt").write_text("Rain is expected in the north. " * 9)
    settings = {
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "evaluation"),
        "recommenders": {"ours": str(base)},
        "max_rows": 4,
        "bootstrap": 10,
        "alignment": ["ours"],
        "alignment_rows": 2,
        "search_encoder": "tfidf",
        "general_text": str(tmp_path / "general.txt"),
        "general_text_base": str(base),
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings))

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(tmp_path / "evaluate.yaml"), *more])
        runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "evaluate.py"), run_name="__main__")
        return capsys.readouterr().out

    printed = run()
    written = json.loads((tmp_path / "evaluation" / "alignment.json").read_text())["models"]["ours"]
    assert set(written["sections"]) == {*SECTIONS, "general_text"} - {"description_to_item"}
    text = written["sections"]["general_text"]["figures"]
    assert text["perplexity"] == pytest.approx(text["perplexity before"])  # the same model
    shown = f"{text['perplexity']:.4f}"
    assert shown in printed and "Steering: ours" in printed
    for name in ("report.md", "report.html"):
        report = (tmp_path / "evaluation" / name).read_text()
        assert shown in report and "Steering: ours" in report and "description_to_item (the items have no" in report
    results = tmp_path / "results.json"
    results.write_text('{"figures": {"pretrained/search/ours/low": 0.5, "pretrained/search/ours 2": 0.25}}')
    source = f"pretrained={tmp_path / 'evaluation' / 'alignment.json'}"
    monkeypatch.setattr(sys, "argv", ["write_results.py", source, "--json", str(results)])
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "write_results.py"), run_name="__main__")
    of_title, of_search = written["sections"]["title_to_item"], written["sections"]["search"]
    figures = json.loads(results.read_text())["figures"]
    assert figures["pretrained/title_to_item/ours"] == pytest.approx(of_title["figures"]["recall@10"], abs=1e-6)
    unseen = "recall@10, unseen wordings"
    assert figures["pretrained/search/ours"] == pytest.approx(of_search["figures"][unseen], abs=1e-6)
    assert figures["pretrained/search/ours/low"] == pytest.approx(of_search["ci"][unseen][0], abs=1e-6)
    assert figures["pretrained/search/ours 2"] == 0.25
    assert f"| pretrained/search/ours | {of_search['figures'][unseen]:.4f} [" in capsys.readouterr().out

    again = run()
    assert "Reusing" in again and shown in again
    (tmp_path / "general.txt").write_text("Something else is expected.")
    assert "Reusing" not in run()
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings | {"alignment": []}))
    assert "Steering" not in run() and not (tmp_path / "evaluation" / "alignment.json").exists()
    with pytest.raises(ValueError, match="alignment names 'nobody'"):
        run("--alignment", "nobody")


def test_tables_mark_what_one_model_lacks():
    part = {"rows": 3, "figures": {"exact": 0.5}, "ci": {"exact": [0.25, 0.75]}}
    tables = alignment_tables(
        {"a": {"sections": {"x": part}, "left_out": {}}, "b": {"sections": {}, "left_out": {"x": "no column"}}}
    )
    assert tables[0]["rows"] == [["x: exact", "3", "0.5000 [0.2500, 0.7500]", "–"]]
    assert "x (no column)" in tables[0]["note"]
