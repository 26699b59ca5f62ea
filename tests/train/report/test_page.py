from __future__ import annotations

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from terrazzo.errors import InputError
from terrazzo.train.metrics import MetricsLog
from terrazzo.train.report import write_report

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\"' & <style>*{}</style>"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def stage(name: str = "pretrain", **changes) -> dict:
    return {
        "name": name,
        "model": {"kind": "init", "family": "mosaicbert", "size": "mini", "fields": {}},
        "objective": {"kind": "mlm", "rate": 0.3},
        "sampling": {"max_len": 32, "batch_tokens": 512},
        "optimizer": {"kind": "muon", "lr": 0.02},
        "schedules": {"lr": {"kind": "wsd", "warmup": 0.06}},
        "budget": {"steps": 40, "tokens": None, "seconds": None},
    } | changes


def training_line(step: int, **changes) -> dict:
    return {
        "step": step,
        "stage": "pretrain",
        "progress": step / 40,
        "loss": 5.0 - step / 20,
        "accuracy": 0.25,
        "lr": 1e-3,
        "grad_norm": 1.5,
        "tokens": 512 * step,
        "seconds": 2.0 * step,
        "step_seconds": 1.5,
        "tokens_per_second": 341.0,
        "flops": 3e9,
        "peak_fraction": 0.25,
        "padding_saved": 0.44,
    } | changes


@pytest.fixture
def run(tmp_path, corpus):
    """A run folder that `make_run` fills; its data folder has statistics."""
    data = tmp_path / "data"
    shutil.copytree(corpus.path, data)
    manifest = json.loads((data / "data.json").read_text())
    manifest["config"] = {"preset": "english", "tokenizer_kind": "wordpiece"}
    manifest["statistics"] = {
        "documents": {"read": 500, "kept": 440},
        "dropped": {"exact duplicate": {"documents": 60, "characters": 1234, "examples": [HOSTILE]}},
        "tokens_per_word": 1.37,
        "unknown_share": 0.0,
        "sources": [{"name": "texts.txt"}],
    }
    (data / "data.json").write_text(json.dumps(manifest))
    return tmp_path / "a run"


def make_run(run: Path, lines: list[dict], stages: list[dict] | None = None, finished: bool = True, **record) -> None:
    data = run.parent / "data"
    run.mkdir()
    values = {
        "config": {"data": str(data), "device": "cpu", "stages": stages or [stage()]},
        "data_fingerprint": json.loads((data / "data.json").read_text())["fingerprint"],
        "world_size": 1,
        "provenance": {
            "versions": {"torch": "2.13.0"},
            "hardware": {"cpu": "A CPU", "cores": 2, "memory_bytes": 2**34},
        },
    }
    (run / "run.json").write_text(json.dumps(values | record))
    log = MetricsLog(run / "metrics.jsonl")
    for line in lines:
        log.on_step(line)
    log.close()
    if finished:
        (run / "model").mkdir()
        save_file({"w": np.zeros((30, 50), np.float32)}, run / "model" / "model.safetensors")


def evaluation(step: int, loss: float, **changes) -> dict:
    line = {"step": step, "stage": "pretrain", "tokens": 512 * step, "seconds": 2.0 * step + 0.5}
    return line | {"heldout_loss": loss, "heldout_accuracy": 0.4375} | changes


def written(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_a_finished_run_tells_its_figures(run):
    lines = [training_line(step) for step in range(1, 41)] + [evaluation(40, 2.5, seconds=3600.0)]
    make_run(run, lines, price_per_hour=2.5)
    page = written(run)
    for figure in (
        "MosaicBERT mini (1.50k parameters), trained from scratch on 20.5k tokens",
        "in 40 steps and 1 h on 2 CPU cores.",
        "Held-out loss 2.500, 43.8 % of masked tokens guessed right, perplexity 12.2.",
        "2.50 at 2.50 an hour",
        "120 GFLOP matrix products",
        "25.0 % of 8 GFLOP/s a process, measured",
        "341 tokens/s",
        "440 88.0 % of 500 read",
        "exact duplicate 60 12.0 % 1.23k",
        "400 documents",
        "tokens a word 1.37",
        "muon (lr 0.02)",
        "torch 2.13.0",
    ):
        assert figure in page.text
    assert "banner" not in [value for _, name, value in page.attributes if name == "class"]


def test_passes_over_the_data_count_special_tokens_and_cuts(run, corpus):
    once = sum(n + 2 * -(-n // 30) for n in corpus.train.lengths.tolist())
    make_run(run, [training_line(1, tokens=3 * once)])
    assert "(about 3.0 passes over 400 documents)" in written(run).text


def test_text_cannot_become_markup(run):
    make_run(
        run,
        [training_line(1, stage=HOSTILE)],
        [stage(HOSTILE, model={"kind": "folder", "path": HOSTILE})],
        provenance={"hardware": {"cpu": HOSTILE}, "versions": {HOSTILE: "1"}},
    )
    guesses = [{"token": HOSTILE, "probability": 0.5}]
    samples = [{"text": f"[MASK] {HOSTILE} \ud800", "truth": [HOSTILE], "predictions": [guesses]}]
    (run / "samples.json").write_text(json.dumps(samples))
    page = written(run)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "a", "form", "base"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 6
    assert sum(tag == "link" for tag, _, _ in page.attributes) == 2  # the one empty icon: rel and href


def test_the_page_needs_nothing_from_outside(run):
    make_run(run, [training_line(step) for step in range(1, 41)] + [evaluation(40, 2.5)])
    page, text = written(run), (run / "report.html").read_text()
    loads = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "xlink:href")
    ]
    assert loads == ["data:,"]
    for outside in ("http://", "https://", "url(", "@import"):
        assert outside not in text
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in (value or ""))
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_a_stopped_run_says_where_and_how_to_go_on(run):
    make_run(run, [training_line(step) for step in range(1, 31)], finished=False)
    checkpoint = run / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "counters.json").write_text(json.dumps({"total_steps": 20}))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "lo')
    os.utime(run / "metrics.jsonl", (1e9, 1e9))
    page = written(run)
    assert "stopped before its end, after step 30, 75 % of stage pretrain" in page.text
    assert f"its last checkpoint is step-00000020; go on with terrazzo pretrain --out {run} --resume" in page.text
    assert "No predictions" in page.text


def test_a_run_at_work_is_not_called_stopped(run):
    make_run(run, [training_line(1)], finished=False)
    assert "This run is going on: step 1, 2 % of stage pretrain" in written(run).text


def test_stages_have_boundaries_with_their_names(run):
    lines = [training_line(s, stage="short") for s in range(1, 21)] + [
        training_line(s, stage="long") for s in range(21, 41)
    ]
    make_run(run, lines, [stage("short"), stage("long", model={"kind": "previous", "transform": None})])
    text = write_report(run).read_text()
    assert text.count('class="marks"><span style="left:0.00%;max-width:50.00%">short</span>') == 3
    assert text.count('<span style="left:50.00%;max-width:50.00%">long</span>') == 3
    assert "of the stage before" in text


@pytest.mark.parametrize("steps", [0, 1])
def test_hardly_begun_runs_without_evaluations(run, steps):
    make_run(run, [training_line(s) for s in range(1, steps + 1)], finished=False)
    page = written(run)
    assert "no held-out document has been looked at" in page.text
    assert ("No step has been taken yet." in page.text) == (steps == 0)
    assert ("svg" in page.tags) and "nan" not in page.text.lower()


def test_losses_that_are_not_numbers_are_counted(run):
    make_run(run, [training_line(s, loss=float("nan") if s in (7, 8) else 2.0) for s in range(1, 41)])
    assert "The loss of 2 steps is not a number, first at step 7." in written(run).text


def test_numbers_that_a_method_logs_get_a_chart(run):
    make_run(run, [training_line(s, router_entropy=0.5) for s in range(1, 5)])
    assert written(run).text.count("router_entropy") == 3


def test_without_its_data_folder_the_report_says_so(run):
    make_run(run, [training_line(1)], data_fingerprint="another")
    assert "holds other data now than this run was trained on" in written(run).text
    shutil.rmtree(run.parent / "data")
    assert "No statistics." in written(run).text and "no such data folder" in written(run).text


def test_other_folders_and_damaged_files_are_refused_by_name(run, tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)
    make_run(run, [training_line(1)])
    (run / "samples.json").write_text("[{")
    with pytest.raises(InputError, match=r"samples\.json: does not parse"):
        write_report(run)
    assert not (run / "report.html").exists()
