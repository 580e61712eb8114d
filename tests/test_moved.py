"""Modules that moved are found by their old names too, with a warning that says the new one."""

import importlib.util
import subprocess
import sys

import pytest

from llmrec import moved


@pytest.fixture(autouse=True)
def forgotten():
    """Every test imports the old names for the first time."""
    yield
    for name in [name for name in sys.modules if moved._new_name(name)]:
        del sys.modules[name]


@pytest.mark.parametrize("old, new", moved._MOVED.items())
def test_an_old_name_is_the_same_module(old, new):
    assert importlib.util.find_spec(old).origin == importlib.util.find_spec(new).origin
    if "vllm" in new:  # its modules need vLLM
        return
    with pytest.warns(FutureWarning, match=f"{old} is now {new};") as warned:
        module = importlib.import_module(old)
    assert module is importlib.import_module(new) is importlib.import_module(old)
    assert module.__name__ == module.__spec__.name == new
    assert len([each for each in warned if "is now" in str(each.message)]) == 1


def test_names_that_users_have_in_their_scripts():
    with pytest.warns(FutureWarning) as warned:
        from llmrec.baselines.sasrec import SASRec
        from llmrec.recommender import LLMRecommender, requests_of
        from llmrec.semids import SemIDIndex
    assert {warning.filename for warning in warned} == {__file__}  # where the user reads it
    import llmrec
    from llmrec.recommenders import protocol, sasrec

    assert (LLMRecommender, SemIDIndex, SASRec) == (llmrec.LLMRecommender, llmrec.SemIDIndex, sasrec.SASRec)
    assert requests_of is protocol.requests_of
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("llmrec.baselines.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("llmrec.nothing")


def test_an_old_command_still_runs():
    command = [sys.executable, "-m", "llmrec.serving.recommend_file", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--output" in done.stdout
    assert "llmrec.serving.recommend_file is now llmrec.serving.batch.recommend_file" in done.stderr


def test_a_function_that_moved_is_the_same_function():
    from llmrec.decoding import beam_search, tree_beam_search

    with pytest.warns(FutureWarning, match="tree_beam_search is now llmrec.decoding.search.tree_beam_search"):
        assert beam_search.tree_beam_search is tree_beam_search
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        assert beam_search.other
