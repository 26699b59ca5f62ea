"""The commands about tasks: what they print, what they write, and what a person may get wrong."""

from __future__ import annotations

import inspect
import json
import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console

from terrazzo.cli.finetuning import merged
from terrazzo.cli.options import fields_of
from terrazzo.cli.tables import show_evaluation
from terrazzo.errors import InputError
from terrazzo.tasks.evaluate import Confusion, Evaluation
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.pareto import run_pareto
from terrazzo.tasks.suites import run_suite
from terrazzo.testing import tiny_task_folder, tiny_texts


@pytest.fixture
def command(command_line):
    """Run one command line; its exit status, standard output and standard error."""

    def run(*arguments, stdin=b""):
        status, out, err = command_line(*arguments, stdin=stdin, columns=120)
        return status, out.decode(), err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_task_folder(tmp_path_factory.mktemp("cli") / "model", LabelTask(classes=("calm", "wild")))


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """Options of a fine-tuning that has run, and its folder."""
    folder = tmp_path_factory.mktemp("finetune")
    train = write_rows(folder / "train.jsonl", ["wild" if "dog" in text else "calm" for text in tiny_texts(48)])
    dev = write_rows(folder / "dev.jsonl", ["wild" if "dog" in text else "calm" for text in tiny_texts(16)])
    options = [
        "finetune",
        "--model",
        model,
        "--task",
        "label",
        "--train",
        train,
        "--eval",
        dev,
        "--out",
        folder / "out",
    ]
    options += ["--seeds", "2", "--lr", "1e-3,3e-3", "--epochs", "1", "--threads", "1", "--device", "cpu"]
    return list(map(str, options)), folder / "out"


def test_finetune_leaves_a_model_a_result_and_a_page(command, tuned):
    options, out = tuned
    status, printed, err = command(*options)
    assert status == 0, err
    for part in ("rows", "class calm", "lr-0.001-seed-0", "learning rate", "chosen", "accuracy", "report"):
        assert part in printed, f"{part}: {printed}"
    opening = next(line for line in printed.splitlines() if line.startswith("stage "))
    assert "of the token table only the" in opening and "rows in use, 32 documents" in opening
    assert not any(part in printed for part in ("process(es)", "micro-batches", "of peak"))
    result = json.loads((out / "result.json").read_text())
    assert len(result["runs"]) == 4 and result["lr"] in (1e-3, 3e-3)
    found = json.loads((out / "evaluation.json").read_text())
    assert found["value"] == pytest.approx(result["score"]) and found["rows"] == 16
    page = (out / "report.html").read_text()
    for part in ("terrazzo fine-tuning", "Learning rates and seeds", "calibration error", "calm", "every run"):
        assert part in page, part
    assert "http" not in page.replace("http-equiv", "")
    assert command("predict", "--model", out, stdin=b'"the cat"\n')[0] == 0
    again = command(*options)
    assert again[0] == 0 and json.loads((out / "result.json").read_text())["runs"] == result["runs"]
    (out / "report.html").unlink()
    assert command("report", out)[1].strip() == str(out / "report.html")


def test_empty_cells_of_the_confusion_table_have_one_sign(capsys):
    counts = ((0, 0, 2), (0, 5, 0), (1, 0, 0))
    found = Confusion(classes=("a", "b", "c"), counts=counts)
    evaluation = Evaluation(kind="label", main="f1", value=0.6, low=0.5, high=0.7, scores={}, rows=8, confusion=found)
    show_evaluation(evaluation, Console(width=80))
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-3:]] == [
        ["a", "·", "·", "2"],
        ["b", "·", "5", "·"],
        ["c", "1", "·", "·"],
    ]


def test_a_page_of_runs_that_have_not_ended_says_so(command, tuned, tmp_path):
    options, out = tuned
    if not (out / "result.json").is_file():
        command(*options)
    shutil.copytree(out, tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    (tmp_path / "half" / "evaluation.json").unlink()
    assert command("report", tmp_path / "half")[0] == 0
    page = (tmp_path / "half" / "report.html").read_text()
    assert "have not ended" in page and "Not evaluated yet" in page and "No result yet" in page


def test_mistakes_in_finetune(command, tuned, tmp_path):
    options, out = tuned
    for changed, message in (
        (["--lr", "fast"], "--lr fast: write one rate"),
        (["--budget", "soon"], "budget 'soon'"),
        (["--task", "lable"], "did you mean 'label'"),
        (["--freeze", "all"], "freeze"),
        (["--set", "epoch=1"], "unknown key 'epoch': did you mean 'epochs'"),
        (["--train", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--metric", "bleu"], "metric"),
        (["--set", "options.dropout=1.5"], "dropout: Input should be less than 1 (got 1.5)"),
    ):
        status, _, err = command(*options, "--out", tmp_path / "new", *changed)
        assert status == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "new").exists()
    assert command("finetune", "--out", tmp_path / "x")[2].strip() == (
        "terrazzo: --model: name the folder to begin from"
    )


def test_options_change_parts_of_a_config_file():
    held = {"loss": {"label_smoothing": 0.1}, "epochs": 5, "lora": None}
    given = {
        "loss": {"class_weights": "balanced", "focal_gamma": None},
        "lora": {"rank": 4},
        "epochs": None,
        "seeds": 2,
    }
    assert merged(held, given) == {
        "loss": {"label_smoothing": 0.1, "class_weights": "balanced"},
        "epochs": 5,
        "lora": {"rank": 4},
        "seeds": 2,
    }


def write_rows(path, targets):
    rows = [{"text": text, "label": label} for text, label in zip(tiny_texts(len(targets)), targets, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predict_answers_every_line_and_counts_the_bad_ones(command, model):
    lines = b'{"text": "the cat purrs"}\nnot json\n"a bird sings"\n\n{"txt": 1}\n'
    status, out, err = command("predict", "--model", model, stdin=lines)
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(answers) == 4
    assert sorted(answers[0]) == ["label", "probabilities", "score"] and answers[0]["label"] in ("calm", "wild")
    assert answers[1].keys() == answers[3].keys() == {"error"} and "line 2" in answers[1]["error"]
    assert "2 of 4 rows could not be answered; the first: standard input, line 2" in err


def test_predict_takes_other_columns_and_nothing_at_all(command, model):
    status, out, _ = command("predict", "--model", model, "--fields", "text=tweet", stdin=b'{"tweet": "a bird"}\n')
    assert status == 0 and "label" in json.loads(out)
    fields = "text=tweet,label=mood"  # as in training
    assert command("predict", "--model", model, "--fields", fields, stdin=b'{"tweet": "a bird"}\n') == (0, out, "")
    assert command("predict", "--model", model) == (0, "", "")


def test_evaluate_prints_and_writes(command, model, tmp_path):
    data = write_rows(tmp_path / "test.jsonl", ["calm", "wild", "wild", "stormy"] * 5)
    status, out, err = command("evaluate", "--model", model, "--data", data, "--out", tmp_path / "e.json")
    assert status == 0, err
    for part in (
        "accuracy",
        "95 % interval",
        "20 rows",
        "confusion",
        "worst mistakes",
        "'stormy' (5)",
        "test.jsonl, line",
    ):
        assert part in out, f"{part}: {out}"
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["rows"] == 20 and written["data"] == str(data) and written["fingerprint"]


def test_a_suite_is_run_on_a_model_or_along_runs(command, model, tmp_path, monkeypatch):
    asked = []

    def suite(*arguments, **chosen):
        asked.append((arguments, chosen))
        return SimpleNamespace(table=lambda: "the table")

    monkeypatch.setattr("terrazzo.tasks.suites.run_suite", suite)
    monkeypatch.setattr("terrazzo.tasks.pareto.run_pareto", suite)
    options = ["evaluate", "--suite", "glue", "--data-root", tmp_path, "--tasks", "rte, mrpc", "--seeds", "2"]
    status, out, err = command(*options, "--model", model, "--out", tmp_path / "s", "--threads", "1")
    assert status == 0 and "the table" in out and str(tmp_path / "s" / "suite.json") in out, err
    status, out, err = command(*options, "--checkpoints", tmp_path / "a", "--checkpoints", tmp_path / "b")
    assert status == 0 and "glue-a-b/pareto.png" in out, err
    (first, chosen), (second, _) = asked
    assert first == ("glue", model, tmp_path, tmp_path / "s")
    assert chosen["tasks"] == ["rte", "mrpc"] and list(chosen["seeds"]) == [0, 1] and chosen["threads"] == 1
    assert second[1] == [tmp_path / "a", tmp_path / "b"]
    real = inspect.signature(run_pareto).parameters.keys() & inspect.signature(run_suite).parameters.keys()
    assert chosen.keys() <= real


def test_mistakes_of_a_person(command, model, tmp_path):
    data = write_rows(tmp_path / "test.jsonl", ["calm", "wild"])
    glue = ("evaluate", "--suite", "glue", "--data-root", tmp_path, "--model", model)
    for arguments, message in (
        (("predict", "--model", tmp_path / "nowhere"), "no such folder"),
        (("predict", "--model", tmp_path), "it has no config.json"),
        (("predict", "--model", model, "--fields", "text"), "--fields text: write it as field=column"),
        (("evaluate", "--model", model), "evaluate takes --data FILE"),
        (("evaluate", "--model", model, "--suite", "glue"), "--data-root: name the folder"),
        (("evaluate", "--suite", "glue", "--data-root", tmp_path), "--suite takes a model"),
        (("evaluate", "--suite", "glu", "--data-root", tmp_path, "--model", model), "glu"),
        ((*glue, "--device", "tpu"), "device 'tpu': known: auto, cpu, cuda"),
        ((*glue, "--fields", "text=tweet"), "--fields: goes with --data alone"),
        (("evaluate", "--model", model, "--data", data, "--tasks", "rte"), "--tasks: goes with --suite alone"),
        (("evaluate", "--model", model, "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        (("evaluate", "--model", model, "--data", data, "--fields", "label=mood"), "no column 'mood'"),
        (("evaluate", "--model", model, "--data", data, "--out", tmp_path), "is a folder; name a file in it"),
        (("evaluate", "--model", model, "--data", data, "--worst", "-1"), "--worst -1: take 0 or more"),
        (("predict", "--model", model, "--threads", "0"), "--threads 0: take at least 1"),
        (("predict", "--model", model, "--device", "meta"), "device='meta': take 'cpu', 'cuda'"),
    ):
        status, _, err = command(*arguments)
        assert status == 2 and message in err and "Traceback" not in err, err


def test_fields():
    assert fields_of("a=one, label=the mood") == {"a": "one", "label": "the mood"}
    assert fields_of(None) == {}
    with pytest.raises(InputError, match="--fields a: write it as field=column"):
        fields_of("a=")
