from __future__ import annotations

import errno
import json
import math
import os

import pytest

from terrazzo.errors import InputError, RunError
from terrazzo.train.metrics import MetricsLog, is_evaluation, read_metrics


def training_line(step: int, loss: float = 2.5) -> dict:
    return {"step": step, "stage": "pretrain", "loss": loss, "tokens": 100 * step, "seconds": 0.5 * step}


def write_run(path, steps: int) -> None:
    log = MetricsLog(path)
    for step in range(1, steps + 1):
        log.on_step(training_line(step))
        if step % 2 == 0:
            log.on_evaluation({"step": step, "stage": "pretrain", "heldout_loss": 3.0, "heldout_accuracy": 0.25})
    log.close()


def test_a_line_is_with_the_system_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.on_step(training_line(1))
    log.on_message("not a number")
    assert path.read_bytes() == json.dumps(training_line(1)).encode() + b"\n"
    log.close()


def test_not_finite_is_null_in_the_file_and_nan_in_the_reader(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.on_step(training_line(1, math.nan))
    log.on_step(training_line(2, math.inf))
    log.close()
    assert path.read_text().count('"loss": null') == 2
    assert all(math.isnan(line["loss"]) for line in read_metrics(path))


def test_resume_drops_the_steps_that_are_taken_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, 5)
    log = MetricsLog(path, resume_step=2)
    log.on_step(training_line(3, loss=9.0))
    log.close()
    lines = read_metrics(path)
    assert [(line["step"], is_evaluation(line)) for line in lines] == [(1, False), (2, False), (2, True), (3, False)]
    assert lines[-1]["loss"] == 9.0
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_torn_by_a_kill_is_left_out_and_the_next_run_starts_on_a_line_of_its_own(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_run(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = [1, 2, 2, 3] if cut == 1 else [1, 2, 2]  # without its newline alone, the last line is still whole
    assert [line["step"] for line in read_metrics(path)] == kept
    log = MetricsLog(path, resume_step=3)
    log.on_step(training_line(4))
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [*kept, 4]


@pytest.mark.parametrize("damage", ['{"step": 2, "stage"', "17", '{"loss": 2.0}', "\x00\x00"])
def test_a_damaged_line_inside_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    write_run(path, 3)
    damaged = path.read_text().splitlines()
    damaged[1] = damage
    path.write_text("\n".join(damaged) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: damaged: .*delete this line"):
        read_metrics(path)
    with pytest.raises(InputError, match="line 2"):
        MetricsLog(path, resume_step=3)
    assert path.read_text().splitlines() == damaged


def test_a_new_run_refuses_the_metrics_of_another(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, 1)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another run.*--resume"):
        MetricsLog(path)
    assert path.read_bytes() == before


def test_a_full_disk_names_the_file_and_the_mend():
    log = MetricsLog("/dev/full")
    with pytest.raises(RunError, match="/dev/full: no space left.*--resume") as caught:
        log.on_step(training_line(1))
    assert caught.value.__cause__.errno == errno.ENOSPC
    log.close()
