"""Actors on a Ray cluster of two nodes."""

import os
import sys

import pytest

from llmrec.devices import on_actors


@pytest.mark.vllm
def test_actors_of_both_nodes_answer_every_call_and_a_lost_one_does_its_own_again(ray, tmp_path):
    class Doubler:  # in here, as the actors' processes do not find this file
        def __init__(self, offset: int):
            self.offset = offset

        def make(self, call: tuple) -> tuple[int, str]:
            number, lost = call
            if lost is not None and not lost.exists():
                lost.touch()
                os._exit(1)
            return 2 * number + self.offset, ray.get_runtime_context().get_node_id()

    calls = [(number, tmp_path / "lost" if number == 5 else None) for number in range(20)]
    made = list(on_actors(Doubler, (1,), calls, 2, 0))
    assert sorted(number for number, _ in made) == [2 * number + 1 for number in range(20)]
    assert len({node for _, node in made}) == 2 and (tmp_path / "lost").exists()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'llmrec\[ray\]', or set actors: 0"):
        list(on_actors(dict, (), [], 1, 0))
