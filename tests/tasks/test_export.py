"""Exports: every runtime and precision gives what PyTorch gives, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import processors

import terrazzo
from terrazzo.checkpoint import save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.runtime import choice
from terrazzo.tasks import Result, Span
from terrazzo.tasks import export as export_module
from terrazzo.tasks.adapters import LoraConfig, add_adapters
from terrazzo.tasks.calibration import alike, read_calibration
from terrazzo.tasks.export import export
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import load_task_model, save_task_model
from terrazzo.testing import tiny_task_folder, tiny_texts

TEXTS = [f"{number} {text}" for number, text in enumerate(tiny_texts(80, seed=1))]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "SECONDS", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    task = LabelTask(classes=("calm", "wild"))
    return tiny_task_folder(tmp_path_factory.mktemp("export") / "model", task, depth=1, init_std=0.2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("runtime", "precision", "tolerance"),
    [
        ("torch", "fp32", 1e-5),
        ("torch", "bf16", 5e-2),
        ("openvino", "fp32", 1e-4),
        ("openvino", "bf16", 5e-2),
        ("openvino", "int8", 2e-1),
        ("onnx", "fp32", 1e-4),
    ],
)
def test_the_same_vectors_and_answers(model, texts, tmp_path, runtime, precision, tolerance) -> None:
    done = export(model, tmp_path / "out", runtime, precision, texts, log=silent)
    opened, plain = terrazzo.load(tmp_path / "out"), terrazzo.load(model)
    assert (opened.runtime.name, opened.runtime.precision) == (runtime, precision) == (done.runtime, precision)
    np.testing.assert_allclose(opened.encode(TEXTS[:20]), plain.encode(TEXTS[:20]), atol=tolerance, rtol=0)
    said, wanted = opened.predict(TEXTS[:20]), plain.predict(TEXTS[:20])
    assert np.mean([one.label == other.label for one, other in zip(said, wanted, strict=True)]) >= 0.95
    assert done.agreement.mean >= (0.995 if precision == "int8" else 0.9999)
    assert done.agreement.documents == 26 and done.agreement.answers is not None


def test_progress_is_told_and_nothing_is_printed(model, texts, tmp_path, capsys, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    done = export(model, tmp_path / "fp32", "openvino", "fp32", texts, progress=told.append)
    assert told == ["measuring openvino...", "comparing with fp32 (26 texts)..."]
    assert "(measured here; machine busy: load 99.0)" in "\n".join(done.lines(made_up=False))
    told.clear()
    done = export(model, tmp_path / "again", "openvino", "fp32", texts, progress=told.append)
    assert told == ["comparing with fp32 (26 texts)..."] and "busy" not in "\n".join(done.lines(made_up=False))
    told.clear()
    export(model, tmp_path / "int8", "openvino", "int8", texts, progress=told.append)
    assert told == ["measuring openvino...", "quantising (54 texts)..."]
    assert capsys.readouterr() == ("", "")


def test_pytorchs_weights_are_read_when_asked_for(model, tmp_path) -> None:
    export(model, tmp_path / "out", "openvino", log=silent)
    opened = terrazzo.load(tmp_path / "out")
    opened.encode(["the cat purrs"])
    opened.predict(["the cat purrs"])
    assert not isinstance(opened._network, (MaskedLM, Encoder))
    assert isinstance(opened.network, Encoder) and opened.network is opened.network
    assert isinstance(terrazzo.load(tmp_path / "out", device="cpu")._network, Encoder), "a device asks for PyTorch"


def test_auto_takes_the_quickest_and_remembers_it(model, tmp_path) -> None:
    said: list[str] = []
    first = export(model, tmp_path / "a", log=said.append)
    assert set(first.record.rates) == {"torch", "openvino", "onnx"}
    assert first.runtime == max(first.record.rates, key=first.record.rates.__getitem__)
    again = export(model, tmp_path / "b", log=said.append)
    assert again.remembered and again.runtime == first.runtime and not first.remembered
    assert said[0].startswith(f"runtime: {first.runtime}") and said[-1] == f"next: terrazzo serve {tmp_path / 'b'}"


def test_a_pretrained_model_fills_masks_on_its_runtime(model, tmp_path) -> None:
    network = MaskedLM(terrazzo.load(model).config)
    save_model(tmp_path / "run" / "model", network, model / "tokenizer.json")
    export(tmp_path / "run", tmp_path / "out", "openvino", log=silent)
    text = "the cat [MASK] in the garden"
    ((said, *_),), ((wanted, *_),) = (terrazzo.load(tmp_path / name).fill_mask(text) for name in ("out", "run"))
    assert said.token == wanted.token and said.probability == pytest.approx(wanted.probability, abs=1e-4)


def test_adapters_are_merged(model, tmp_path) -> None:
    loaded, adapter = load_task_model(model), LoraConfig(rank=2)
    add_adapters(loaded.model.encoder, adapter)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_task_model(tmp_path / "lora", loaded.model, model / "tokenizer.json", max_len=32, adapter=adapter)
    export(tmp_path / "lora", tmp_path / "out", "openvino", log=silent)
    said, wanted = (terrazzo.load(tmp_path / name).predict(TEXTS[:8]) for name in ("out", "lora"))
    for one, other in zip(said, wanted, strict=True):
        assert one.label == other.label and one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int8"}, "--calibrate texts.jsonl, at least 64 rows"),
        ({"runtime": "torch", "precision": "int8"}, "--runtime torch has no int8: take openvino, or leave it out"),
        ({"runtime": "onnx", "precision": "int8"}, "--runtime onnx has no int8: take openvino, or leave it out"),
        ({"runtime": "onnx", "precision": "bf16"}, "--runtime onnx has no bf16: take torch or openvino"),
        ({"runtime": "opnvino"}, "did you mean 'openvino'"),
        ({"precision": "int4"}, "--precision int4: .*int8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(model, tmp_path, fields, message) -> None:
    with pytest.raises(InputError, match=message):
        export(model, tmp_path / "out", log=silent, **fields)
    assert not (tmp_path / "out").exists()


def test_a_model_is_never_replaced_by_an_export(model, tmp_path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    for out, message in ((model, "is the model itself"), (other, "holds a model that was not exported")):
        with pytest.raises(InputError, match=message):
            export(model, out, "torch", log=silent)
    export(model, tmp_path / "out", "torch", log=silent)
    export(model, tmp_path / "out", "torch", log=silent)


@pytest.mark.parametrize("interrupted", ["choose", "write_record"])
def test_an_interrupted_export_leaves_nothing(model, tmp_path, monkeypatch, interrupted) -> None:
    def stop(*arguments, **fields):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, interrupted, stop)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "out", "torch", log=silent)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


SLOW = """
import sys, time
from terrazzo.tasks import export
export.choose = lambda *given, **options: (print("begun", flush=True), time.sleep(60))
export.export(sys.argv[1], sys.argv[2], "torch")
"""


def test_a_terminated_export_leaves_nothing(model, tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SLOW, str(model), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"begun\n" and list(tmp_path.glob(".out.*.tmp"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_files_that_no_export_wrote_are_not_deleted(model, tmp_path) -> None:
    out = tmp_path / "out"
    export(model, out, "torch", log=silent)
    (out / "deep").mkdir()
    for name in ("notes.txt", "deep/rows.csv"):
        (out / name).write_text("mine")
    with pytest.raises(InputError, match=r"no export wrote \(deep/rows.csv, notes.txt\): move them elsewhere"):
        export(model, out, "torch", log=silent)
    assert (out / "notes.txt").read_text() == (out / "deep" / "rows.csv").read_text() == "mine"
    (out / "runtime.json").write_text("{")
    with pytest.raises(InputError, match=r"no export wrote \(config.json, .* and \d+ more\)"):
        export(model, out, "torch", log=silent)


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_damaged_weights_are_told(model, tmp_path, value) -> None:
    loaded = load_task_model(model)
    with torch.no_grad():
        loaded.model.encoder.embeddings.norm.weight[3:] = value
    save_task_model(tmp_path / "broken", loaded.model, model / "tokenizer.json", max_len=32)
    name = r"encoder\.embeddings\.norm\.weight holds numbers" if value != value else "its vectors"
    with pytest.raises(InputError, match=rf"broken: {name} .*not finite.*so its weights are damaged"):
        export(tmp_path / "broken", tmp_path / "out", "torch", log=silent)
    assert not (tmp_path / "out").exists()


def test_an_export_changed_by_hand_is_no_source(model, tmp_path) -> None:
    export(model, tmp_path / "first", "openvino", log=silent)
    weights = tmp_path / "first" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="model.safetensors: is not the file that was written"):
        export(tmp_path / "first", tmp_path / "out", "torch", log=silent)


def test_too_few_texts_are_refused_with_the_number_needed(model, tmp_path) -> None:
    file = tmp_path / "few.txt"
    file.write_text("\n".join([*TEXTS[:40], *TEXTS[:40]]))
    with pytest.raises(InputError, match="has 40 different rows; calibration needs at least 64: add some"):
        export(model, tmp_path / "out", "openvino", "int8", file, log=silent)


def test_texts_that_judge_set_no_ranges(model, texts) -> None:
    loaded = terrazzo.load(model)
    for task in (None, loaded.predictor.task):
        found = read_calibration(texts, loaded.tokenizer, 48, task)
        judging = {document.ids.tobytes() for document in found.judging}
        assert len(judging) == len(found.rows) == len(TEXTS) // 3
        assert not judging & {document.ids.tobytes() for document in found.setting}
        assert max(batch.max_len for batch in found.set_batches) <= 48
        assert all(batch.num_documents == 1 for batch in found.set_batches)


def test_calibration_reads_texts_as_encode_does(model, texts) -> None:
    tokenizer = terrazzo.load(model).tokenizer
    framed = [document.ids.tolist() for document in read_calibration(texts, tokenizer, 48).judging]
    tokenizer.post_processor = processors.Sequence([])
    assert [document.ids.tolist() for document in read_calibration(texts, tokenizer, 48).judging] == framed


def test_answers_that_are_alike() -> None:
    spans = (Span(start=0, end=1, label="A", text="x"),)
    assert alike([Result(label="a"), Result(label="b")], [Result(label="a"), Result(label="c")]) == 0.5
    assert alike([Result(tags=("O", "B"))], [Result(tags=("O", "O"))]) == 0.5
    assert alike([Result(spans=spans)], [Result(spans=())]) == 0
    values = [Result(score=0.0), Result(score=1.0), Result(score=2.0)]
    assert alike(values, [Result(score=0.01), Result(score=1.5), Result(score=2.0)]) == pytest.approx(2 / 3)
