"""No wording shows its answer: slots stand on the side where their task has them."""

import pytest
import yaml
from marked_store import marked_setting

from llmrec.instructions import TASKS, Prompt, TaskMix, Template, load_prompt, parse_mixture, task_rows
from llmrec.instructions.prompts import fill, pieces_of
from llmrec.instructions.tasks import check_prompt, check_recommends
from llmrec.instructions.teacher import ROWS, check_question

every_task = pytest.mark.parametrize("name", sorted(TASKS))


@pytest.fixture(scope="module")
def setting():
    return marked_setting()


@every_task
def test_a_task_names_the_slots_that_it_fills(setting, name):
    data, _, _, renderer = setting
    task, [row] = TASKS[name], task_rows(name, data, 6, limit=1)
    assert {*task.asks, *task.answers} == set(task.slots(renderer.catalogue, row, ""))
    assert not {*task.asks} & {*task.answers}
    check_prompt(load_prompt(name))


@every_task
def test_what_a_question_may_show_does_not_follow_from_the_targets(setting, name):
    data, index, _, renderer = setting
    task = TASKS[name]
    for row in task_rows(name, data, 6, limit=40):
        nobody = row | {"targets": [], "target_behaviours": []}
        told, without = (task.slots(renderer.catalogue, one, "") for one in (row, nobody))
        assert {slot: told[slot] for slot in task.asks} == {slot: without[slot] for slot in task.asks}
        if task.ends_with_item:
            semid = index.encode(row["targets"][0])
            assert not [slot for slot in task.asks if semid in told[slot]] or row["targets"][0] in row["history"]


@every_task
def test_a_prompt_that_shows_its_answer_is_refused(tmp_path, name):
    path, task = tmp_path / "own.yaml", TASKS[name]
    for slot in task.answers:
        wording = {"prompt": f"After this comes {{{slot}}}. What comes?", "completion": f"{{{slot}}}"}
        for place in ("templates", "unseen"):
            fields = load_prompt(name).to_dict()
            fields[place] = [*fields.get(place, []), wording]
            path.write_text(yaml.safe_dump(fields))
            with pytest.raises(ValueError, match=rf"own.yaml: slot '{slot}' would show the answer.*{task.asks[0]}"):
                TaskMix.parse(str(path))
    with pytest.raises(ValueError, match=f"slot 'nobody' is not one of {', '.join((*task.asks, *task.answers))}"):
        check_prompt(Prompt(name, (Template("{nobody}", "x"),)))


def test_every_way_to_a_prompt_checks_it(setting):
    _, index, _, renderer = setting
    leaking = Prompt("next_item", (Template("After {history} comes {target}. What?", "{target}"),))
    with pytest.raises(ValueError, match="slot 'target' would show the answer of task 'next_item'"):
        renderer.prompt(leaking, {"history": ["item-1"], "targets": []})
    with pytest.raises(ValueError, match="slot 'target' would show the answer"):
        parse_mixture(["next_item"], leaking, index)


def test_a_system_text_has_no_slots():
    fields = load_prompt("next_item").to_dict() | {"system": "Speak of {history} in {braces}."}
    with pytest.raises(ValueError, match="own.yaml: slot 'history' stands in system, which has no slots"):
        check_prompt(Prompt.from_dict(fields, "own.yaml"))


@pytest.mark.parametrize("completion", ["something", "Next: {target}", "{target} enjoy", "{target}{target}", ""])
def test_what_recommends_is_answered_with_the_item_alone(setting, tmp_path, completion):
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump({"task": "next_item", "templates": [{"prompt": "{history}?", "completion": completion}]})
    )
    with pytest.raises(ValueError, match=r"own.yaml: the completion .* should be '\{target\}' alone"):
        parse_mixture([str(path)], load_prompt(path), setting[1])
    fields = load_prompt("think_next_item").to_dict()
    fields["templates"][1]["completion"] = completion
    with pytest.raises(ValueError, match="own.yaml: the completion of a thinking prompt should read like '<think>"):
        check_recommends(Prompt.from_dict(fields, "own.yaml"))


def test_what_recommends_shows_the_history():
    blind = [{"prompt": "After nothing", "completion": "{target}"}]
    with pytest.raises(ValueError, match=r"own.yaml: 'After nothing' shows no history: write \{history\} into it"):
        check_recommends(Prompt.from_dict({"task": "next_item", "templates": blind}, "own.yaml"))
    check_recommends(Prompt.from_dict({"task": "next_item", "templates": blind, "format": "stream"}))
    for name in TASKS:
        if TASKS[name].recommends:
            check_recommends(load_prompt(name))


@pytest.mark.parametrize(
    "wrong",
    [{"system": ["a"]}, {"separator": 1}, {"semids": {}}, {"task": 2}, {"format": None}, {"thinking": "no"},
     {"weight": "much"}, {"templates": 3}, {"templates": "ab"}, {"unseen": {"a": 1}}],
)  # fmt: skip
def test_fields_of_another_type_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"own.yaml: .*{'template' if name in ('templates', 'unseen') else name}"):
        Prompt.from_dict(load_prompt("next_item").to_dict() | wrong, "own.yaml")


def test_slots_are_plain_names():
    assert fill("{{a}} {b}", {"b": "{c}"}) == "{a} {c}"
    for wording in ("{title.upper}", "{0}", "{}", "{title!r}", "{title:>9}", "{title[0]}"):
        with pytest.raises(ValueError, match="a slot is a name in braces"):
            pieces_of(wording)


@pytest.mark.parametrize("kind", ROWS)
def test_a_question_about_a_preference_has_no_item(kind):
    check_question(load_prompt(f"teacher/{kind}"), kind)
    asked = Prompt.from_dict({"task": kind, "templates": [{"prompt": "{item}?", "completion": ""}]}, "own.yaml")
    if kind == "preference":
        with pytest.raises(ValueError, match="own.yaml, a question about a preference: slot 'item' is not one"):
            check_question(asked, kind)
    else:
        check_question(asked, kind)
    asked = Prompt.from_dict({"task": kind, "templates": [{"prompt": "{user}?", "completion": ""}]}, "own.yaml")
    with pytest.raises(ValueError, match="own.yaml.*slot 'user' is not one of history"):
        check_question(asked, kind)
