"""Figures of runtimes: turns, medians, agreement, who is recommended, and processes that break."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import terrazzo
from terrazzo.cli.bench_worker import serve
from terrazzo.cli.benching import read_texts
from terrazzo.errors import InputError, RunError
from terrazzo.runtime.bench import Figures, best, measure, recommendation
from terrazzo.runtime.choice import choose
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder, tiny_texts

FIGURES = Figures(
    runtime="torch",
    precision="fp32",
    texts_per_second=100.0,
    slowest=90.0,
    fastest=110.0,
    p50_ms=1.0,
    p95_ms=2.0,
    memory_bytes=1,
    start_seconds=1.0,
    cosine_mean=1.0,
    cosine_min=1.0,
    batch_tokens=1,
    streams=1,
)
#: Answers like a worker does; what it says follows from the name of its folder.
FAKE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
facts = json.loads((folder / "facts.json").read_text())
for line in sys.stdin:
    asked = json.loads(line)
    with open(folder.parent / "log", "a") as log:
        print(folder.name, asked["do"], asked.get("turn", ""), file=log)
    if asked["do"] == facts.get("breaks"):
        sys.exit("no such instruction")
    if asked["do"] == "run":
        seconds = facts["seconds"][asked["turn"]]
        print(json.dumps({"seconds": seconds, "alone": [0.001, 0.003]}), flush=True)
    elif asked["do"] == "start":
        print(json.dumps({"texts": 60, "batch_tokens": 512, "streams": 2}), flush=True)
    else:
        print(json.dumps({"vectors": facts["vectors"], "memory_bytes": 7}), flush=True)
"""


@pytest.fixture
def contenders(tmp_path):
    def made(**facts):
        folders = {}
        for name, values in facts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "facts.json").write_text(json.dumps(values))
            folders[tuple(name.split("_"))] = tmp_path / name
        return folders, [sys.executable, "-c", FAKE]

    return made


def test_contenders_take_turns_and_the_first_turn_warms_up(contenders, tmp_path):
    folders, worker = contenders(
        torch_fp32={"seconds": [60.0, 2.0, 1.0, 3.0], "vectors": [[1.0, 0.0], [0.0, 2.0]]},
        openvino_int8={"seconds": [60.0, 0.5, 0.5, 0.6], "vectors": [[3.0, 4.0], [0.0, 9.0]]},
    )
    (fast, slow), failed = measure(folders, worker, judged=2, rounds=3)
    assert not failed and (fast.name, slow.name) == ("openvino int8", "torch fp32")
    assert (slow.texts_per_second, slow.slowest, slow.fastest) == (30.0, 20.0, 60.0)
    assert fast.cosine_mean == pytest.approx(0.8) and fast.cosine_min == pytest.approx(0.6)
    assert slow.cosine_min == pytest.approx(1.0) and fast.memory_bytes == 7
    assert (fast.p50_ms, round(fast.p95_ms, 6)) == (2.0, 3.0)
    runs = [line.split() for line in (tmp_path / "log").read_text().splitlines() if " run " in line]
    assert runs == [[name, "run", str(turn)] for turn in range(4) for name in ("torch_fp32", "openvino_int8")]


def test_one_that_breaks_is_left_out_with_its_reason(contenders):
    whole = {"seconds": [1.0, 1.0], "vectors": [[1.0, 0.0]]}
    folders, worker = contenders(torch_fp32=whole, onnx_fp32=whole | {"breaks": "run"}, openvino_fp32=whole)
    figures, failed = measure(folders, worker, judged=1, rounds=1)
    assert {f.name for f in figures} == {"torch fp32", "openvino fp32"}
    assert list(failed) == ["onnx fp32"] and "no such instruction" in failed["onnx fp32"]


def test_nothing_is_said_without_what_others_are_compared_with(contenders):
    folders, worker = contenders(torch_fp32={"breaks": "start"})
    with pytest.raises(RunError, match="nothing can be compared"):
        measure(folders, worker, judged=1, rounds=1)


def test_the_fastest_that_agrees_is_recommended():
    rough = dataclasses.replace(FIGURES, runtime="onnx", precision="int8", texts_per_second=900.0, cosine_mean=0.98)
    close = dataclasses.replace(rough, runtime="openvino", texts_per_second=300.0, slowest=290.0, cosine_mean=0.996)
    assert best([FIGURES, rough, close]) == close and best([rough]) is None
    first, second = recommendation([FIGURES, rough, close], "minilm", "texts.txt")
    assert "--runtime openvino --precision int8 --calibrate texts.txt" in first
    assert "the same: torch fp32" in second and "--calibrate" not in second
    assert len(recommendation([FIGURES, rough], "minilm", "texts.txt")) == 1


def test_two_whose_rounds_overlap_are_not_told_apart():
    near = dataclasses.replace(FIGURES, runtime="onnx", texts_per_second=95.0, slowest=80.0, fastest=99.0)
    int8 = dataclasses.replace(near, precision="int8", texts_per_second=300.0, slowest=290.0, cosine_mean=0.996)
    _, _, said = recommendation([FIGURES, near, int8], "minilm", "texts.txt")
    assert said == "torch fp32 and onnx fp32 cannot be told apart here; more --rounds"
    behind = dataclasses.replace(near, fastest=89.0)
    assert len(recommendation([FIGURES, behind, int8], "minilm", "texts.txt")) == 2


def test_the_worker_answers_what_is_asked(tmp_path):
    torch.manual_seed(0)
    model = terrazzo.load(tiny_task_folder(tmp_path / "m", LabelTask(classes=("no", "yes"))))
    texts, answers = tiny_texts(5), io.StringIO()
    asked = [{"do": "start"}, {"do": "run", "singles": 3, "turn": 2}, {"do": "end", "judged": 2}]
    serve(model, texts, [json.dumps(line) for line in asked], answers)
    start, run, end = map(json.loads, answers.getvalue().splitlines())
    assert start["texts"] == 5 and start["batch_tokens"] == model.runtime.batch_tokens
    assert run["seconds"] > 0 and len(run["alone"]) == 3
    np.testing.assert_allclose(end["vectors"], model.encode(texts[-2:]), rtol=0, atol=1e-6)
    assert end["memory_bytes"] > 2**20


def test_texts_are_different_and_not_empty(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a cat\n\na dog\na cat\n")
    assert sorted(read_texts(path)) == ["a cat", "a dog"]
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a cat"}\n{"text": "ein Hund"}\n')
    assert sorted(read_texts(path)) == ["a cat", "ein Hund"]
    path.write_text('{"text": " "}\n')
    with pytest.raises(InputError, match=r"texts.jsonl"):
        read_texts(path)


def test_the_command_measures_and_recommends(tmp_path, command_line, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(terrazzo.__file__).parents[1]))
    monkeypatch.setattr("terrazzo.tasks.export.choose", functools.partial(choose, seconds=0.1))
    folder = tiny_task_folder(tmp_path / "m", LabelTask(classes=("no", "yes")))
    texts, out = tmp_path / "texts.txt", tmp_path / "bench.json"
    texts.write_text("\n".join(tiny_texts(8)))
    asked = ("bench", folder, "--texts", texts, "--runtime", "torch", "--rounds", "1", "--json", out)
    status, said, err = command_line(*asked, columns=120)
    assert status == 0, err
    assert said.decode().index("int8 is left out: of 8 texts") < said.decode().index("making torch fp32")
    assert "torch fp32" in said.decode() and f"terrazzo export {folder} --out DIR --runtime torch" in said.decode()
    values = json.loads(out.read_text())
    assert [row["runtime"] for row in values["rows"]] == ["torch"] and values["rows"][0]["cosine_mean"] > 0.9999
    status, _, err = command_line("bench", folder, "--texts", texts, "--runtime", "tensorflow", columns=120)
    assert status == 2 and "known: torch fp32" in err
