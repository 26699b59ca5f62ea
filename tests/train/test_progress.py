from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from terrazzo.testing import tiny_run
from terrazzo.train.metrics import read_metrics
from terrazzo.train.progress import Average, ProgressLine, default_hooks


def training_line(step: int, **changes) -> dict:
    return {
        "step": step,
        "stage": "pretrain",
        "loss": 3.25,
        "tokens": 1000 * step,
        "seconds": 2.0 * step,
        "tokens_per_second": 41_234.0,
        "peak_fraction": 0.384,
        "padding_saved": 0.44,
        "progress": step / 100,
    } | changes


def listen(width: int = 200, terminal: bool = False, **options):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, color_system=None)
    return text, ProgressLine(console, **options)


def test_a_log_gets_a_line_every_so_many_seconds_and_the_last_state():
    now = [0.0]
    text, hook = listen(every=10.0, total_steps=100, clock=lambda: now[0])
    for step in range(1, 26):
        now[0] = 1.0 * step
        hook.on_step(training_line(step))
    hook.close()
    lines = text.getvalue().splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["1", "11", "21", "25"]
    for figure in (
        "25 %",
        "step 25/100",
        "loss 3.250",
        "41.2k tok/s",
        "38 % of peak",
        "44 % padding saved",
        "2 m 30 s left",
    ):
        assert figure in lines[-1]


def test_the_share_of_peak_can_be_left_out():
    text, hook = listen(peak=False)
    hook.on_step(training_line(1))
    assert "tok/s" in text.getvalue() and "of peak" not in text.getvalue()


def test_the_time_left_follows_the_recent_pace_and_forgets_the_compilation():
    text, hook = listen(every=0.0)
    for step in range(1, 601):  # 600 s before the first step, 300 steps of 5 s, then 1 s a step, 1000 steps in all
        seconds = 600.0 + 5 * min(step, 300) + max(step - 300, 0)
        hook.on_step(training_line(step, seconds=seconds, progress=step / 1000))
    assert text.getvalue().splitlines()[-1].endswith("6 m 40 s left")


def test_evaluations_and_messages_stay_and_the_line_repeats_the_last_heldout_loss():
    text, hook = listen(every=0.0)
    hook.on_message("[bold] checkpoint of step 1")
    hook.on_evaluation({"step": 1, "heldout_loss": 2.0, "heldout_accuracy": 0.5})
    hook.on_step(training_line(2))
    message, evaluation, step = text.getvalue().splitlines()
    assert message == "[bold] checkpoint of step 1"
    assert evaluation == "step 1: held-out loss 2.0000, accuracy 50.0 %"
    assert "held-out 2.000" in step


def test_a_terminal_gets_one_live_line_that_fits():
    text, hook = listen(width=70, terminal=True)
    hook.on_step(training_line(1, loss=math.nan, peak_fraction=None))
    hook.close()
    drawn = [line for line in text.getvalue().replace("\r", "\n").splitlines() if "step 1" in line]
    assert drawn and all(len(line.split("\x1b[2K")[-1].rstrip()) <= 70 for line in drawn)
    assert "loss nan" in drawn[-1] and "left" in drawn[-1] and "padding" not in drawn[-1]


def test_average_is_unbiased_from_the_first_number_and_passes_over_nan():
    average = Average(0.9)
    assert math.isnan(average.value)
    for number in (5.0, math.nan, math.inf, 5.0):
        average.add(number)
    assert average.value == pytest.approx(5.0)
    average.add(10.0)
    assert average.value == pytest.approx((10 + 0.9 * 5 + 0.81 * 5) / (1 + 0.9 + 0.81))


def test_the_default_hooks_go_on_where_the_newest_checkpoint_stands(tmp_path):
    run = tmp_path / "run"
    config = tiny_run(tmp_path / "data", run, steps=8)
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run / "checkpoints" / "step-00000002" / "counters.json").write_text('{"total_steps": 2}')
    (run / "metrics.jsonl").write_text("".join(json.dumps(training_line(step)) + "\n" for step in range(1, 5)))
    text = io.StringIO()
    for hook in default_hooks(config, Console(file=text, width=200))(run):
        hook.on_step(training_line(3, loss=9.0))
        hook.close()
    kept = [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl")]
    assert kept == [(1, 3.25), (2, 3.25), (3, 9.0)]
    assert "step 3/8" in text.getvalue()
