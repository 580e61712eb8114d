import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.data.provenance import can_reuse
from llmrec.recommenders import check_trained_on
from llmrec.stages import begin_stage, content_of, finish_stage


def test_a_stage_is_new_then_resumed_then_done_and_refuses_other_settings(tmp_path):
    folder = tmp_path / "stage"
    assert begin_stage(folder, {"a": 1}) == "new"
    assert begin_stage(folder, {"a": 1}) == "resume"
    finish_stage(folder, figure=2)
    assert begin_stage(folder, {"a": 1}) == "done"
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": 2})
    assert begin_stage(folder, {"a": 2}, overwrite=True) == "new"


def test_what_is_overwritten_lies_aside_until_its_successor_is_finished(tmp_path):
    folder, aside = tmp_path / "stage", tmp_path / "stage.old"
    begin_stage(folder, {"a": 1})
    (folder / "part.txt").write_text("unfinished")
    assert begin_stage(folder, {"a": 2}, overwrite=True) == "new" and not aside.exists()
    (folder / "result.txt").write_text("hours of work")
    finish_stage(folder)
    for attempt in (3, 4):  # both fail, the second also replaces what the first left
        assert begin_stage(folder, {"a": attempt}, overwrite=True) == "new"
        (folder / "part.txt").write_text("unfinished")
        assert (aside / "result.txt").read_text() == "hours of work"
    finish_stage(folder)
    assert not aside.exists() and (folder / "part.txt").exists()


def test_a_backup_of_the_same_name_is_never_removed(tmp_path):
    folder, mine = tmp_path / "stage", tmp_path / "stage.old"
    mine.mkdir()
    (mine / "backup.txt").write_text("precious")
    begin_stage(folder, {"a": 1})
    finish_stage(folder)
    with pytest.raises(ValueError, match="stage.old, which exists: move that elsewhere"):
        begin_stage(folder, {"a": 2}, overwrite=True)
    assert (mine / "backup.txt").read_text() == "precious" and begin_stage(folder, {"a": 1}) == "done"


def test_a_run_that_wrote_nothing_is_in_nobodys_way(tmp_path):
    folder = tmp_path / "stage"
    assert begin_stage(folder, {"a": "typo"}) == "new"
    assert begin_stage(folder, {"a": "corrected"}) == "new"
    assert begin_stage(folder, {"a": "corrected"}) == "resume"
    (folder / "part.txt").write_text("hours of work")
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": "typo"})
    (folder / "part.txt").unlink()
    finish_stage(folder)
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": "typo"})


def test_the_content_of_files_that_settings_may_name(tmp_path):
    file = tmp_path / "prompt.yaml"
    file.write_text("one")
    before = content_of("a_column", None, str(file))
    assert content_of("a_column", None, "") is None and before == content_of(str(file))
    file.write_text("two")
    assert content_of(str(file)) != before


def test_files_of_somebody_else_are_never_removed(tmp_path):
    (tmp_path / "mine.csv").write_text("precious")
    with pytest.raises(ValueError, match="files that no stage wrote"):
        begin_stage(tmp_path, {}, overwrite=True)
    with pytest.raises(ValueError, match="no prepared data"):
        can_reuse(tmp_path, {}, "")
    assert (tmp_path / "mine.csv").read_text() == "precious"


def test_evaluation_refuses_a_model_of_other_data(tmp_path):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "base", data, tiny_index(data))
    check_trained_on(folder, data)
    with pytest.raises(ValueError, match="trained on other data"):
        check_trained_on(folder, tiny_data(num_users=41))
