"""The commands about tasks: what they print, what they write, and what a person may get wrong."""

from __future__ import annotations

import io
import json
import sys

import pytest

from terrazzo import cli
from terrazzo.cli.tasks import fields_of
from terrazzo.errors import InputError
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder, tiny_texts


@pytest.fixture
def command(monkeypatch, capsysbinary):
    """Run one command line in this process; its exit status, standard output and standard error."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["terrazzo", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("COLUMNS", "120")
        capsysbinary.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_task_folder(tmp_path_factory.mktemp("cli") / "model", LabelTask(classes=("calm", "wild")))


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


def test_mistakes_of_a_person(command, model, tmp_path):
    data = write_rows(tmp_path / "test.jsonl", ["calm", "wild"])
    for arguments, message in (
        (("predict", "--model", tmp_path / "nowhere"), "no such folder"),
        (("predict", "--model", tmp_path), "it has no config.json"),
        (("predict", "--model", model, "--fields", "text"), "--fields text: write it as field=column"),
        (("evaluate", "--model", model), "evaluate takes --data FILE"),
        (("evaluate", "--model", model, "--suite", "glue"), "--data-root: name the folder"),
        (("evaluate", "--suite", "glue", "--data-root", tmp_path), "--suite takes a model"),
        (("evaluate", "--suite", "glu", "--data-root", tmp_path, "--model", model), "glu"),
        (("evaluate", "--model", model, "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        (("evaluate", "--model", model, "--data", data, "--fields", "label=mood"), "no column 'mood'"),
    ):
        status, _, err = command(*arguments)
        assert status == 2 and message in err and "Traceback" not in err, err


def test_fields():
    assert fields_of("a=one, label=the mood") == {"a": "one", "label": "the mood"}
    assert fields_of(None) == {}
    with pytest.raises(InputError, match="--fields a: write it as field=column"):
        fields_of("a=")
