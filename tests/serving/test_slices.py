"""Calls that run a slice at a time, in threads that end."""

import threading
from functools import partial

import pytest

from llmrec.serving.vllm import slices
from llmrec.serving.vllm.slices import Begun


def count(to: int, seen: list, pause) -> int:
    for number in range(to):
        seen.append(number)
        pause()
    return to


def threads() -> int:
    return sum(thread.name == "llmrec-slices" for thread in threading.enumerate())


def test_a_call_runs_from_one_pause_to_the_next():
    begun, seen = Begun(), []
    for step in range(3):
        assert not begun.go_on("a", partial(count, 3, seen)).done
        assert seen == [*range(step + 1)] and "a" in begun
    last = begun.go_on("a")
    assert last.done and last.result() == 3 and "a" not in begun


def test_an_error_comes_out_of_the_slice_in_which_it_happens():
    def fail(pause):
        pause()
        raise ValueError("no")

    begun = Begun()
    assert not begun.go_on("a", fail).done
    with pytest.raises(ValueError, match="no"):
        begun.go_on("a").result()
    assert "a" not in begun


def test_what_nobody_asks_for_is_forgotten_and_its_thread_ends(monkeypatch):
    monkeypatch.setattr(slices, "_MOST", 4)
    begun, before = Begun(), threads()
    for number in range(20):
        begun.go_on(str(number), partial(count, 3, []))
    assert [str(number) in begun for number in (15, 16, 19)] == [False, True, True]
    deadline = threading.Event()
    for _ in range(1000):
        if threads() - before == 4:
            break
        deadline.wait(0.01)
    assert threads() - before == 4
    for number in range(16, 20):
        while not begun.go_on(str(number)).done:
            pass
