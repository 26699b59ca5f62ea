"""`terrazzo export`: what it says and what it refuses."""

from __future__ import annotations

import json

import pytest

from terrazzo.runtime import choice
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder, tiny_texts


@pytest.fixture
def command(command_line, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "SECONDS", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        status, out, err = command_line("export", *arguments, columns=120)
        return status, out.decode(), err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_task_folder(tmp_path_factory.mktemp("cli") / "model", LabelTask(classes=("calm", "wild")), depth=1)


def test_int8_says_what_it_did(command, model, tmp_path) -> None:
    texts = tmp_path / "rows.jsonl"
    texts.write_text("".join(json.dumps({"mood": "?", "tweet": text}) + "\n" for text in tiny_texts(70)))
    out = tmp_path / "out"
    options = ("--precision", "int8", "--runtime", "openvino", "--calibrate", texts, "--fields", "text=tweet")
    status, said, err = command(model, "--out", out, *options)
    assert (status, err) == (0, "")
    lines = [line.split(":")[0] for line in said.splitlines()]
    assert lines[:4] == ["runtime", "tokens/s", "precision", "agreement"] and lines[-2:] == [f"wrote {out}", "next"]
    assert " answers equal" in said and f"terrazzo serve {out}" in said


def test_the_persons_mistakes_exit_with_2(command, model, tmp_path) -> None:
    for arguments, message in (
        ((model, "--precision", "int8"), "--precision int8 needs texts"),
        ((tmp_path / "absent",), "no such folder"),
        ((model, "--calibrate", tmp_path / "absent.jsonl"), "absent.jsonl"),
        ((tmp_path / ("m" * 300),), ": File name too long: name another file or folder"),
        ((model, "--out", tmp_path / ("o" * 252)), "ooo: cannot be made (File name too long): name another folder"),
        ((model, "--out", tmp_path / ("o" * 300)), "ooo: cannot be made (File name too long): name another folder"),
    ):
        status, said, err = command("--out", tmp_path / "out", *arguments)
        assert (status, said) == (2, "") and message in err
    assert not (tmp_path / "out").exists()
