"""General conversations: what is measured is not written about, answers are whole, the recipe writes them."""

import json
import re

import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.files import read_parquet
from llmrec.instructions import general
from llmrec.instructions.general import conversations, general_questions, plain_questions
from llmrec.instructions.mixture import ChatData
from llmrec.instructions.prompts import fill
from recipes import general_chat

TOPICS = general._read("topics")
COMMON = "a an the of to in do you is are what how does and one short sentence answer write two three tell me".split()


def words(text: str) -> set[str]:
    return {*re.findall(r"\w+", text.lower())} - {*COMMON}


def test_nothing_that_is_measured_can_be_written_about(monkeypatch):
    asked = plain_questions()
    assert len({*asked}) == len(asked) == 40
    topics = [topic for kind in TOPICS for topic in kind["topics"]]
    assert len({*topics}) == len(topics)
    measured = set().union(*map(words, asked))
    assert not [topic for topic in topics if words(topic) & measured]
    count = sum(len(kind["forms"]) * len(kind["topics"]) for kind in TOPICS)
    every = general_questions(count)
    assert len({*every}) == count and general_questions(9, 1) != general_questions(9, 2) == general_questions(9, 2)
    with pytest.raises(ValueError, match=f"there are {count} general questions, not {count + 1}"):
        general_questions(count + 1)
    monkeypatch.setattr(general, "plain_questions", lambda: [every[0].upper()])
    assert {*every} - {*general_questions(count - 1)} == {every[0]}


def test_every_kind_of_question_is_asked_alike():
    kinds = [{fill(form, {"topic": topic}) for form in kind["forms"] for topic in kind["topics"]} for kind in TOPICS]
    drawn = general_questions(10 * len(kinds), seed=3)
    assert [sum(one in kind for one in drawn) for kind in kinds] == [10] * len(kinds)


def test_answers_that_were_cut_end_with_their_last_whole_sentence():
    answers = {"b?": "Yes. It is. And so", "aa?": "1. One\n2. Two", "ccc?": " It is 3.5 m. Or\n1. ", "d?": "Never"}
    seen = []

    def write(questions, system, seeds):
        seen.extend(zip(questions, seeds))
        return (answers[question] for question in questions)

    talks = conversations([*answers], write, ended=lambda answer: answer.startswith("1."), seed=7)
    told = [[turn["content"] for turn in talk] for talk in talks]
    assert told == [["b?", "Yes. It is."], ["aa?", "1. One\n2. Two"], ["ccc?", "It is 3.5 m."]]
    assert {*seen} == {("b?", 7), ("aa?", 8), ("ccc?", 9), ("d?", 10)}


def test_the_recipe_writes_what_the_mixture_reads(tmp_path, capsys, monkeypatch):
    data = tiny_data()
    base = write_tiny_base(tmp_path / "base", data, tiny_index(data))
    monkeypatch.setattr(general, "_END", re.compile(r"$"))  # an untrained model writes no sentence
    args = general_chat.ChatArguments(str(base), str(tmp_path / "chat"), rows=5, max_new_tokens=6)
    general_chat.main(args)
    rows = ChatData(str(tmp_path / "chat" / "chat.parquet")).rows
    assert [row["messages"][0]["content"] for row in rows] == general_questions(5)
    table = read_parquet(tmp_path / "chat" / "chat.parquet")
    general_chat.main(args)
    assert "Reusing" in capsys.readouterr().out and read_parquet(tmp_path / "chat" / "chat.parquet").equals(table)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no answer of .* has a whole sentence"):
        general_chat.main(general_chat.ChatArguments(str(base), str(tmp_path / "more"), rows=2, max_new_tokens=1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["hi"], "row 1: messages should be a list of"),
        ([["hi", "you"]], "row 1: messages should be a list of"),
        ([[{"from": "user", "value": "hi"}]], "row 1: messages should be a list of"),
        (["ua", "a"], "row 2: user and assistant should take turns after any system message, not assistant"),
        (["sua", "uua"], "row 2: .* not user, user, assistant"),
        (["usa"], "row 1: .* not user, system, assistant"),
        (["uaua", "uau"], "row 2: it should end with the assistant"),
    ],
)
def test_conversations_that_cannot_be_learned_are_named(tmp_path, rows, message):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    if isinstance(rows[0], str) and {*rows[0]} <= {*roles}:
        rows = [[{"role": roles[one], "content": "text"} for one in row] for row in rows]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"chat data '.*{file.name}'.*{message}"):
        list(ChatData(str(file)).rows)
    file.write_text("")
    with pytest.raises(ValueError, match=f"chat data '.*{file.name}'"):
        list(ChatData(str(file)).rows)
