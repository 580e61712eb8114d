"""Actors on a Ray cluster of two nodes."""

import os
import sys

import pytest

from llmrec.devices import _check_room, on_actors


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
    made = list(on_actors(Doubler, (1,), calls, 2, 0, str))
    assert sorted(number for number, _ in made) == [2 * number + 1 for number in range(20)]
    assert len({node for _, node in made}) == 2 and (tmp_path / "lost").exists()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'llmrec\[ray\]', or set actors: 0"):
        list(on_actors(dict, (), [], 1, 0, str))


@pytest.mark.vllm
def test_a_call_that_kills_its_actors_is_given_up_and_named(ray, tmp_path):
    class Killer:
        def __init__(self, good: bool):
            if not good:
                raise ValueError("no model here")

        def make(self, call: int) -> int:
            if call == 2:
                with open(tmp_path / "killed", "a") as file:
                    file.write("x")
                os._exit(1)
            return call

    with pytest.raises(RuntimeError, match="^call 2: the actor that should make it was lost, and again 3 times"):
        list(on_actors(Killer, (True,), range(4), 1, 0, lambda call: f"call {call}"))
    assert (tmp_path / "killed").read_text() == "xxxx"
    with pytest.raises(RuntimeError, match="^call 0: the actor .* failed; .*no model here|(?s:call 0.*no model here)"):
        list(on_actors(Killer, (False,), range(4), 1, 0, lambda call: f"call {call}"))


@pytest.mark.vllm
def test_more_actors_than_the_cluster_has_room_for_are_refused(ray):
    said = "^actors: 3 with a CPU and 0 GPUs each, but .* 2 nodes with 2 CPUs and 0 GPUs, has room for 2: lower"
    with pytest.raises(ValueError, match=said):
        list(on_actors(dict, (), [1], 3, 0, str))


@pytest.mark.parametrize(
    ("nodes", "gpus", "room"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}], 0, 6),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 0.5, 0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}], 0.3, 8),
        ([{"CPU": 8.0, "GPU": 2.0}, {"GPU": 1.0}], 1, 2),
        ([{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 1.0}], 2, 1),
    ],
)
def test_room_is_counted_by_node(nodes, gpus, room):
    if room:
        _check_room(room, gpus, nodes)
    with pytest.raises(ValueError, match=f"has room for {room}: "):
        _check_room(room + 1, gpus, nodes)


@pytest.mark.parametrize(("actors", "gpus"), [(0, 0), (-1, 0), (1, -1), (1, 1.5)])
def test_numbers_that_are_none_are_refused(actors, gpus):
    with pytest.raises(ValueError, match="give 1 or more, and a part of a GPU or whole ones"):
        _check_room(actors, gpus, [{"CPU": 9.0, "GPU": 9.0}])
