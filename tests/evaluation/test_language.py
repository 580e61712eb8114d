"""What a model kept of its base's language: the rule for answers, mass on new tokens, perplexity, the recipe."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_index, tiny_model, write_tiny_base

from llmrec.evaluation.language import (
    against,
    general_text,
    kept,
    load_language_model,
    measure,
    new_token_mass,
    perplexity,
)
from llmrec.models.from_scratch import train_tokenizer
from llmrec.models.vocabulary import semid_token_ids
from recipes import language


@pytest.fixture(scope="module")
def tiny():
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    return model.eval(), tokenizer, np.concatenate(semid_token_ids(tokenizer, index)).tolist()


@pytest.mark.parametrize(
    "question, base, answer, agrees",
    [
        ("What is the capital of France?", "The capital of France is Paris.", "Paris", True),
        ("What is the capital of France?", "The capital of France is Paris.", "It is Paris. I like it.", True),
        ("What is the capital of France?", "The capital of France is Paris.", "The capital of France is Lyon.", False),
        ("What is half of 20?", "Half of 20 is 10.", "Half of 20 is 11.", False),
        ("What is half of 20?", "Half of 20 is 10.", "half of 20 is 10. That is 50 %.", True),
        ("What is 2 plus 3?", "2 + 3 = 5", "5", True),
        ("What is 2 plus 3?", "2 + 3 = 5", "2 + 3 = 6", False),
        ("What is 3 times 3?", "3 times 3 is 9.", "9", True),
        ("How warm is it?", "It is 30 degrees now", "It is 31 degrees now", False),
        ("Is it flat?", "Yes, it is.", "No, it is not.", False),
        ("Name three fruits.", "1. Bananas\n2. Grapes", "1. Pears\n2. Plums", False),
        ("Name three fruits.", "1. Bananas\n2. Grapes", "1. Bananas\n2. Plums", True),
        ("Say hello.", "Hello.", "Say.", False),  # neither adds a word
        ("Say hello.", "Hello.", "", False),
    ],
)
def test_an_answer_is_kept_where_it_adds_the_same_to_the_question(question, base, answer, agrees):
    assert kept(question, answer, base) is agrees
    assert kept(question, base, answer) is agrees


def test_answers_with_a_semantic_id_are_never_kept():
    row = {"question": "Who?", "answer": "Ada <a_1>", "semids": True, "mass": 0.5}
    base = {"answers": [{**row, "semids": False, "mass": 0.0}], "perplexity": 8.0, "tokens": 9}
    found = against({"answers": [row], "perplexity": 12.0, "tokens": 9}, base)
    assert (found["questions_kept"], found["questions_exact"], found["answers_with_semids"]) == (0, 1, 1)
    assert found["perplexity_ratio"] == 1.5 and found["mass_max"] == found["mass_mean"] == 0.5
    assert against(base, base)["questions_kept"] == 1


def test_mass_is_the_softmax_over_the_new_tokens_after_each_prompt(tiny):
    model, tokenizer, new = tiny
    prompts = tokenizer(["red gadget", "what is the number of the green gadget?"], add_special_tokens=False)
    masses = new_token_mass(model, prompts["input_ids"], new)
    for prompt, mass in zip(prompts["input_ids"], masses):
        odds = model(torch.tensor([prompt])).logits[0, -1].exp()
        assert mass == pytest.approx((odds[new].sum() / odds.sum()).item(), rel=1e-4)
    assert new_token_mass(model, prompts["input_ids"], []) == [0, 0]


def test_answers_that_hold_semantic_ids_are_told(tiny):
    model, tokenizer, new = tiny
    text = "The museum opens at nine and closes at five."
    found = measure(model, tokenizer, [], ["What is red?"], text)
    assert not found["answers"][0]["semids"] and found["answers"][0]["mass"] == 0 and found["tokens"] > 8
    loud = copy.deepcopy(model)
    loud.get_input_embeddings().weight.data[new] *= 100  # the head is tied to it
    pushed = measure(loud, tokenizer, new, ["What is red?"], text)
    assert pushed["answers"][0]["semids"] and pushed["answers"][0]["mass"] > 0.99
    assert pushed["perplexity"] > 100 * found["perplexity"] or math.isinf(pushed["perplexity"])


def test_general_text_is_prose_of_named_packages():
    text, versions = general_text()
    assert list(versions) == ["torch", "transformers", "peft", "accelerate/LICENSE"]
    assert "Apache License" in text and "PyTorch" in text and "http" not in text and len(text) > 8000
    with pytest.raises(ValueError, match="package nowhere .* README"):
        general_text(["nowhere"])
    with pytest.raises(ValueError, match="package torch .* GONE"):
        general_text(["torch/GONE"])


def test_the_recipe_measures_every_folder_once(tmp_path, monkeypatch, capsys):
    data = tiny_data()
    base = write_tiny_base(tmp_path / "base", data, tiny_index(data))
    plain, out = tmp_path / "plain", tmp_path / "out"
    model, tokenizer, new = load_language_model(base)
    assert len(new) == 16
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    assert load_language_model(plain)[2] == []
    monkeypatch.setattr(language, "plain_questions", lambda: ["What is red?", "What is green?"])
    (tmp_path / "text.txt").write_text("The museum opens at nine and closes at five. " * 9)
    args = language.LanguageArguments(str(plain), [f"made={base}"], str(out), str(tmp_path / "text.txt"))
    language.main(args)
    found = json.loads((out / "made.json").read_text())
    assert found["folder"] == str(base) and found["perplexity_ratio"] == pytest.approx(1)
    assert found["questions"] == 2 and found["questions_exact"] == 2  # the same weights; without SemIDs both are kept
    assert found["mass_mean"] > 0 == json.loads((out / "base.json").read_text())["answers"][0]["mass"]
    row = [cell.strip() for cell in capsys.readouterr().out.partition("| made |")[2].splitlines()[0].split("|")]
    assert row[:3] == [str(found[name]) for name in ("questions_kept", "questions_exact", "answers_with_semids")]
    monkeypatch.setattr(language, "measure", None)  # not asked again
    language.main(args)
    assert json.loads((out / "made.json").read_text()) == found
    monkeypatch.undo()
    other = train_tokenizer(["The museum opens at nine and closes at five. "] * 9, 400)
    model.save_pretrained(tmp_path / "alien")
    other.save_pretrained(tmp_path / "alien")
    args.models = [f"alien={tmp_path / 'alien'}"]
    with pytest.raises(ValueError, match="model alien=.*/alien cuts the text into other tokens than"):
        language.main(args)
    model.get_input_embeddings().weight.data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "diverged")
    tokenizer.save_pretrained(tmp_path / "diverged")
    args.models = [f"diverged={tmp_path / 'diverged'}"]
    with pytest.raises(ValueError, match="diverged: its perplexity is nan"):
        language.main(args)
    assert {path.name for path in out.glob("[!.]*.json")} == {"base.json", "made.json"}
    for wrong in (["base=x"], ["a/b=x"], ["alone"], ["a=x", "a=y"]):
        with pytest.raises(ValueError, match="name=folder"):
            language.main(language.LanguageArguments(str(plain), wrong, str(out)))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for text in ("gone.txt", "latin.txt"):
        with pytest.raises(ValueError, match=f"general_text .*{text} is not a readable UTF-8 text file"):
            language.main(language.LanguageArguments(str(plain), [f"made={base}"], str(out), str(tmp_path / text)))
    with pytest.raises(ValueError, match="neither a folder with a model nor one of the Hub"):
        load_language_model(tmp_path / "gone")


def test_perplexity_is_that_of_the_tokens(tiny):
    model, tokenizer, _ = tiny
    text = "The museum opens at nine and closes at five. " * 4
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        whole = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.exp().item()
        halves = [torch.tensor([ids[:40]]), torch.tensor([ids[40:80]])]
        losses = [model(half, labels=half).loss.item() for half in halves]
    assert perplexity(model, tokenizer, text, length=len(ids)) == {
        "perplexity": pytest.approx(whole, rel=1e-4),
        "tokens": len(ids) - 1,
    }
    assert perplexity(model, tokenizer, text, blocks=2, length=40)["perplexity"] == pytest.approx(
        np.exp(np.mean(losses))
    )
    with pytest.raises(ValueError, match="at least two"):
        perplexity(model, tokenizer, "")
