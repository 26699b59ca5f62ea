from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command


def test_every_benchmark_is_listed_once():
    folder = Path(command.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    listed = sorted(command.CPU + command.GPU)
    assert listed == sorted(runnable - {"__main__"}), "list each benchmark in CPU or GPU of benchmarks/__main__.py"


@pytest.mark.parametrize(("names", "status", "run"), [(["a"], 0, ["a"]), (["b", "a"], 1, ["b", "a"]), (["c"], 2, [])])
def test_a_failing_benchmark_does_not_stop_the_others(monkeypatch, capsys, names, status, run):
    done = []
    monkeypatch.setattr(command, "CPU", ("a", "b"))
    monkeypatch.setattr(command, "ran", lambda name: done.append(name) or name != "b")
    assert command.main(names) == status
    assert done == run


def test_gpu_chooses_the_gpu_list(monkeypatch):
    done = []
    monkeypatch.setattr(command, "CPU", ("a",))
    monkeypatch.setattr(command, "GPU", ("g",))
    monkeypatch.setattr(command, "ran", lambda name: done.append(name) or True)
    assert command.main([]) == 0 and command.main(["--gpu"]) == 0
    assert done == ["a", "g"]
