"""General conversations: what is measured is not written about, answers are whole, the recipe writes them."""

import re

import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.files import read_parquet
from llmrec.instructions import general
from llmrec.instructions.general import conversations, general_questions, plain_questions
from llmrec.instructions.mixture import ChatData
from recipes import general_chat

COMMON = "a an the of to in do you is are what how does and one short sentence answer write two three tell me".split()


def words(text: str) -> set[str]:
    return {*re.findall(r"\w+", text.lower())} - {*COMMON}


def test_nothing_that_is_measured_can_be_written_about(monkeypatch):
    asked = plain_questions()
    assert len({*asked}) == len(asked) == 40
    topics = general._read("topics")["topics"]
    assert len({*topics}) == len(topics)
    measured = set().union(*map(words, asked))
    assert not [topic for topic in topics if words(topic) & measured]
    every = general_questions(600)
    assert len({*every}) == 600 and general_questions(9, 1) != general_questions(9, 2) == general_questions(9, 2)
    with pytest.raises(ValueError, match="there are 600 general questions, not 601"):
        general_questions(601)
    monkeypatch.setattr(general, "plain_questions", lambda: [every[0].upper()])
    assert {*every} - {*general_questions(599)} == {every[0]}


def test_answers_end_with_their_last_whole_sentence():
    answers = {"b?": "Yes. It is. And so", "aa?": "1. One\n2. Two", "ccc?": " It is 3.5 m. Or\n1. ", "d?": "Never"}
    seen = []

    def write(questions, system, seeds):
        seen.extend(zip(questions, seeds))
        return (answers[question] for question in questions)

    talks = conversations([*answers], write, seed=7)
    assert [[turn["content"] for turn in talk] for talk in talks] == [["b?", "Yes. It is."], ["ccc?", "It is 3.5 m."]]
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
