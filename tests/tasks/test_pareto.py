from __future__ import annotations

import json

import pytest

from terrazzo.errors import InputError
from terrazzo.tasks import pareto
from terrazzo.tasks.pareto import Curve, Point, checkpoints, frontier, run_pareto, spent
from terrazzo.tasks.suites import SuiteResult, TaskOutcome
from terrazzo.tasks.suites.result import SeedRun


def pretraining_run(folder, steps, kept, flops=2.0):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": {}}), encoding="utf-8")
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 1.0, "tokens": 10 * step, "seconds": 0.5 * step, "flops": flops}
        lines += [line, {"step": step, "tokens": 10 * step, "seconds": 0.5 * step + 9, "heldout_loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for step in kept:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    return folder


def test_costs_add_up_to_each_checkpoint(tmp_path):
    run = pretraining_run(tmp_path / "a", 8, [2, 4])
    assert [step for step, _ in checkpoints(run)] == [2, 4]
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert checkpoints(run)[-1] == (8, run / "model")
    assert spent(run, [2, 8]) == [
        {"tokens": 20, "seconds": 1.0, "flops": 4.0},
        {"tokens": 80, "seconds": 4.0, "flops": 16.0},
    ]
    with pytest.raises(InputError, match="no line for the checkpoint of step 9"):
        spent(run, [9])
    with pytest.raises(InputError, match="no checkpoints; train with a larger `keep`"):
        checkpoints(pretraining_run(tmp_path / "none", 2, []))
    with pytest.raises(InputError, match="not a run folder"):
        checkpoints(tmp_path)


def outcome(name, scores):
    runs = tuple(SeedRun(seed=seed, lr=1e-3, score=score, scores={}) for seed, score in enumerate(scores))
    return TaskOutcome(name=name, title=name, metrics=("accuracy",), score=sum(scores) / len(scores), runs=runs)


def test_the_picture_is_drawn_from_every_checkpoint(tmp_path, monkeypatch):
    tried = []

    def tried_suite(suite, model, data_root, out, **settings):
        tried.append((suite, model.name, out, settings["seeds"]))
        tasks = (outcome("a", [0.4, 0.6]), outcome("b", [0.5, 0.5]))
        return SuiteResult(
            suite=suite, title="S", model=str(model), profile="quick", procedure="", mean=0.5, tasks=tasks
        )

    monkeypatch.setattr(pareto, "run_suite", tried_suite)
    runs = [pretraining_run(tmp_path / name, 8, [2, 8], flops) for name, flops in (("ours", 2.0), ("theirs", None))]
    found = run_pareto("glue", runs, tmp_path, tmp_path / "out", seeds=[0, 1])
    assert [curve.name for curve in found.curves] == ["ours", "theirs"] and len(tried) == 4
    assert tried[1] == ("glue", "step-00000008", tmp_path / "out" / "ours" / "step-00000008", [0, 1])
    point = found.curves[0].points[1]
    assert (point.seconds, point.flops, point.quality) == (4.0, 16.0, 0.5)
    assert point.spread == pytest.approx(0.05 * 2**0.5) and point.seeds == 2 and point.tasks == {"a": 0.5, "b": 0.5}
    held = json.loads((tmp_path / "out" / "pareto.json").read_text(encoding="utf-8"))
    assert held["curves"][1]["points"][0]["flops"] is None
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 10_000
    assert "theirs" in (tmp_path / "out" / "pareto.svg").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="a different folder name"):
        run_pareto("glue", [runs[0], runs[0]], tmp_path, tmp_path / "out")


def test_the_frontier_holds_what_nothing_cheaper_matches():
    def curve(name, *points):
        values = {"step": 1, "tokens": 1, "flops": 1.0, "spread": 0.0, "seeds": 1, "tasks": {}}
        return Curve(name=name, points=tuple(Point(seconds=s, quality=q, **values) for s, q in points))

    front = frontier([curve("a", (1, 0.5), (3, 0.7), (4, 0.6)), curve("b", (2, 0.5), (3, 0.6), (5, 0.8))])
    assert [(name, point.seconds) for name, point in front] == [("a", 1), ("a", 3), ("b", 5)]
