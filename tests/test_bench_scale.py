"""scripts/bench_scale.py: every size has figures of its own, and what is no size is refused."""

import sys

import bench_scale
import pytest


def test_sizes_that_differ_have_names_that_differ():
    sizes = (1, 500, 999, 1000, 1500, 10_000, 10_500, 10**6, 1_500_000, 10**7, 10**8)
    names = [bench_scale.short(size) for size in sizes]
    assert len({*names}) == len(sizes)
    assert [names[n] for n in (5, 7, 10)] == ["10k", "1m", "100m"]


@pytest.mark.parametrize("flags", [["--interactions", "0"], ["--items", "-5"], ["--dim", "0"]])
def test_what_is_no_size_is_refused(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", "--interactions", "--items", *flags])
    with pytest.raises(SystemExit) as ended:
        bench_scale.main()
    assert ended.value.code == 2 and f"{flags[0]}: {flags[1]} should be at least 1" in capsys.readouterr().err
