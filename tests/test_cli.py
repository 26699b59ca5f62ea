"""The command line: the path from text to vectors, and what a person may get wrong."""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import terrazzo
from terrazzo import cli
from terrazzo.checkpoint import save_model
from terrazzo.data import PrepareConfig
from terrazzo.data.files import sha256
from terrazzo.errors import RunError
from terrazzo.nn import Encoder, bert
from terrazzo.objectives import MLM
from terrazzo.testing import TINY_MODEL, log_metrics, losses, tiny_corpus, tiny_run, tiny_texts
from terrazzo.train import train

FIELDS = "model.fields={" + ", ".join(f"{key} = {value}" for key, value in TINY_MODEL.items()) + "}"
SMALL = ["--set", FIELDS, "--set", "sampling.batch_tokens=512", "--set", "sampling.max_len=32", "--set", "threads=1"]
SMALL += ["--set", "device=cpu", "--set", "precision=fp32"]


@pytest.fixture
def command(command_line):
    """Run one command line; its exit status, standard output as bytes, and standard error."""
    return partial(command_line, columns=200)


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    """A model folder of a short run, in its run folder."""
    run = tmp_path_factory.mktemp("cli") / "run"
    train(tiny_run(corpus.path, run), hooks=log_metrics)
    return run / "model"


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_from_text_to_vectors(command, tmp_path):
    texts = tiny_texts(300)
    (tmp_path / "corpus.jsonl").write_bytes(jsonl(texts))
    data, run = tmp_path / "data", tmp_path / "run"

    status, out, err = command(
        "prepare", tmp_path / "corpus.jsonl", "--out", data, "--vocab-size", 128, "--heldout", 0.1
    )
    assert status == 0 and b"documents" in out, err
    status, out, err = command("plan", "--data", data, "--budget", "20steps", *SMALL)
    assert status == 0 and b"measured here" in out and b"FLOPs" in out, err
    foreseen = ["--size", "base", "--budget", "1h", "--hardware", "h200", "--set", "sampling.batch_tokens=4096"]
    status, out, err = command("plan", "--data", data, *foreseen)
    assert status == 0 and b"assumed from the datasheet" in out and b"1 h" in out, err

    status, out, err = command("pretrain", "--data", data, "--out", run, "--budget", "4steps", *SMALL)
    assert status == 0, err
    assert f"model   {run / 'model'}\nreport  {run / 'report.html'}\n".encode() in out
    assert len(losses(run)) == 4
    (run / "report.html").unlink()
    status, out, _ = command("report", run)
    assert (status, out.decode().strip()) == (0, str(run / "report.html")) and (run / "report.html").stat().st_size

    asked = [texts[5], texts[0] * 3, texts[9]]
    status, out, err = command("encode", "--model", run / "model", stdin=jsonl(asked))
    assert status == 0, err
    vectors = np.load(io.BytesIO(out))
    assert vectors.dtype == np.float32 and vectors.shape == (3, TINY_MODEL["width"])
    np.testing.assert_allclose(vectors, terrazzo.load(run / "model").encode(asked), rtol=1e-5, atol=1e-6)
    options = ["--normalize", "--pooling", "cls", "--format", "jsonl"]
    status, out, err = command("encode", "--model", run / "model", *options, stdin=jsonl(asked) + b'\n"plain"\n')
    rows = np.array([json.loads(line) for line in out.splitlines()])
    assert rows.shape == (4, TINY_MODEL["width"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_vectors_go_through_a_pipe(model):
    command = [sys.executable, "-m", "terrazzo", "encode", "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=jsonl(["the cat purrs"]), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert np.load(io.BytesIO(done.stdout)).shape == (1, TINY_MODEL["width"])


def test_a_stopped_run_exits_with_130_and_says_how_to_go_on(command, corpus, tmp_path, monkeypatch):
    loss, calls = MLM.loss, []

    def interrupted(self, model, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    pretrain = ["pretrain", "--data", corpus.path, "--out", tmp_path / "run", "--budget", "6steps", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(MLM, "loss", interrupted)
        status, out, _ = command(*pretrain)
    assert status == 130
    assert f"stopped; go on with: terrazzo pretrain --out {tmp_path / 'run'} --resume".encode() in out
    resume = ["pretrain", "--out", tmp_path / "run", "--resume"]
    assert "was begun with stages.0.budget" in refused(
        command, *resume, "--data", corpus.path, "--budget", "7steps", *SMALL
    )
    status, out, err = command(*resume, "--set", "checkpoint_every=2")
    assert status == 0, err
    assert len(losses(tmp_path / "run")) == 6


def test_a_run_that_cannot_go_on_exits_with_3(command, corpus, tmp_path, monkeypatch):
    loss = MLM.loss

    def broken(self, model, batch):
        result = loss(self, model, batch)
        return type(result)(sum=result.sum * float("nan"), weight=result.weight, logs=result.logs)

    monkeypatch.setattr(MLM, "loss", broken)
    status, _, err = command("pretrain", "--data", corpus.path, "--out", tmp_path / "run", "--budget", "6steps", *SMALL)
    assert status == 3 and err.startswith("terrazzo: step 1: the loss is nan") and "Traceback" not in err


def test_a_config_file_its_stages_and_options(command, corpus, tmp_path):
    (tmp_path / "run.toml").write_text(
        "checkpoint_every = 2\nthreads = 1\ndevice = 'cpu'\n[model]\nfamily = 'bert'\n"
        "[sampling]\nbatch_tokens = 512\nmax_len = 32\n[[stages]]\n[[stages]]\nname = 'second'\n"
    )
    options = ["--config", tmp_path / "run.toml", "--size", "tiny", "--budget", "2steps", "--set", FIELDS]
    status, _, err = command("pretrain", "--data", corpus.path, "--out", tmp_path / "run", *options)
    assert status == 0, err
    first, second = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["stages"]
    assert (first["model"]["family"], first["model"]["size"]) == ("bert", "tiny")
    assert second["model"]["kind"] == "previous"
    assert first["budget"]["steps"] == second["budget"]["steps"] == 2 and len(losses(tmp_path / "run")) == 4


def test_options_of_prepare_have_the_defaults_of_its_config():
    defaults = PrepareConfig()
    for name, parameter in inspect.signature(cli.pretraining.prepare).parameters.items():
        if name not in ("sources", "out"):
            assert parameter.default == getattr(defaults, name), name


def refused(command, *arguments, stdin=b""):
    """The one line on standard error of a command that must exit with 2."""
    status, _, err = command(*arguments, stdin=stdin)
    assert status == 2, err
    assert err.startswith("terrazzo: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "optimizer.lrr=1"], "did you mean 'lr'?"),
        (["--set", "samplng.max_len=64"], "unknown key 'samplng': did you mean 'sampling'?"),
        (["--set", "lr"], "--set lr: write it as key=value"),
        (["--set", "sampling.max_len=a"], "stages.0.sampling.max_len"),
        (["--size", "smal"], "size 'smal': did you mean 'small'?"),
        (["--family", "mosaic"], "did you mean 'mosaicbert'?"),
        (["--budget", "10 parsecs"], "budget '10 parsecs': write it as 10m, 2h, 20Mtok or 3000steps"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such config file"),
        (["--data", "nowhere"], "nowhere: no such data folder; make one with `terrazzo prepare"),
        (["--set", "sampling.batch_tokens=9000000"], "sampling.batch_tokens 9000000: the training split has"),
        (["--set", "model.fields.depth=200000"], "GiB are free: take a smaller --size"),
        (["--resume"], "not a run folder"),
    ],
)
def test_what_pretrain_cannot_use(command, corpus, tmp_path, options, message):
    data = [] if "--data" in options else ["--data", corpus.path]
    assert message in refused(command, "pretrain", "--out", tmp_path / "run", *data, *options)
    assert not (tmp_path / "run").exists()


def test_pretrain_wants_data_and_a_folder_of_its_own(command, corpus, model, tmp_path):
    assert "--data: name the folder" in refused(command, "pretrain", "--out", tmp_path / "run")
    before = sorted(model.parent.rglob("*"))
    err = refused(command, "pretrain", "--data", corpus.path, "--out", model.parent)
    assert f"{model.parent} holds a run: choose another --out, or go on with --resume" in err
    assert sorted(model.parent.rglob("*")) == before


def test_damaged_data(command, corpus, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus.path, data)
    shard = data / "train-00000.tokens.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    err = refused(command, "pretrain", "--data", data, "--out", tmp_path / "run", *SMALL)
    assert f"{shard}: damaged: its content does not match the checksum" in err
    (data / "data.json").unlink()
    assert "no data.json" in refused(command, "plan", "--data", data)


def test_models_that_do_not_fit(command, corpus, model, tmp_path):
    def pretrain(data, folder):
        source = ["--set", "model.kind=folder", "--set", f"model.path={folder}"]
        return refused(command, "pretrain", "--data", data, "--out", tmp_path / "run", *source)

    other = tiny_corpus(tmp_path / "other", documents=60, seed=5)
    tokenizer = other.path / "tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    vocabulary = changed["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.write_text(json.dumps(changed))
    manifest = json.loads((other.path / "data.json").read_text())
    manifest["files"]["tokenizer.json"] = {"bytes": tokenizer.stat().st_size, "sha256": sha256(tokenizer)}
    (other.path / "data.json").write_text(json.dumps(manifest))
    assert f"prepared with another tokenizer than the model in {model}" in pretrain(other.path, model)

    assert "no such folder" in pretrain(corpus.path, tmp_path / "nowhere")
    foreign = tmp_path / "t5"
    shutil.copytree(model, foreign)
    (foreign / "config.json").write_text('{"model_type": "t5"}')
    assert "'model_type' is 't5', an architecture that this encoder cannot be" in pretrain(corpus.path, foreign)
    assert "t5" in refused(command, "encode", "--model", foreign, stdin=b'{"text": "a"}')
    encoder = Encoder(bert("tiny", corpus.vocab_size))
    headless = save_model(tmp_path / "headless", encoder, corpus.path / "tokenizer.json")
    assert "no masked-language-model head" in pretrain(corpus.path, headless)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stdin", "options", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', [], "standard input, line 2: not JSON"),
        (b'\xff\xfe"a"\n', [], "standard input, line 1: not JSON"),
        (b'{"txt": "a"}\n', [], "line 1: no text in field 'text' (fields: txt); choose one with --text-field"),
        (b'{"text": 3}\n', [], "line 1: no text in field 'text'"),
        (b"[1]\n", [], "line 1: no text in field 'text' (got [1])"),
        (b'{"text": "a"}\n', ["--pooling", "men"], "pooling='men': known: mean, cls, max"),
        (b'{"text": "a"}\n', ["--format", "csv"], "--format csv: npy or jsonl"),
    ],
)
def test_what_encode_cannot_use(command, model, stdin, options, message):
    assert message in refused(command, "encode", "--model", model, *options, stdin=stdin)


def test_encode_of_nothing_is_no_vectors(command, model):
    status, out, err = command("encode", "--model", model)
    assert status == 0, err
    assert np.load(io.BytesIO(out)).shape == (0, TINY_MODEL["width"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus.txt", "--preset", "englsh"], "did you mean 'english'?"),
        (["nowhere.txt"], "nowhere.txt"),
        (["corpus.txt", "--tokenizer-kind", "sentencepiece"], "sentencepiece"),
        (["corpus.txt", "--vocab-size", "64", "--tokenizer", "t.json"], "exclude each other"),
        (["corpus.txt", "--document", "page"], "page"),
        (["empty.txt"], "empty.txt"),
        (["corpus.txt", "--heldout", "0.9"], "--heldout"),
    ],
)
def test_what_prepare_cannot_use(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("\n\n".join(tiny_texts(50)))
    (tmp_path / "empty.txt").write_text("")
    assert message in refused(command, "prepare", *arguments, "--out", "data")
    assert not (tmp_path / "data" / "data.json").exists()


def test_report_wants_a_run(command, tmp_path):
    assert f"{tmp_path}: not a run folder" in refused(command, "report", tmp_path)


def test_ranks_beyond_the_first_repeat_no_refusal_but_tell_what_they_alone_know(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command("report", tmp_path)[::2] == (2, "")

    def lost(path):
        raise RunError("another rank stopped answering")

    monkeypatch.setattr("terrazzo.train.write_report", lost)
    assert command("report", tmp_path)[::2] == (3, "terrazzo (rank 1): another rank stopped answering\n")
