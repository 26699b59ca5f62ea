"""`terrazzo serve`: what it makes of its options."""

from __future__ import annotations

import json
import logging

import pytest

from terrazzo.serve import start
from terrazzo.serve.logs import JsonLines


@pytest.fixture
def command(command_line, monkeypatch):
    """Run `terrazzo serve` without serving; its status, its errors, and what would have been served."""
    started = []
    monkeypatch.setattr(start, "serve", lambda folders, settings: started.append((folders, settings)))

    def run(*arguments):
        before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS}
        status, _, err = command_line("serve", *arguments, columns=120)
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
        return status, err, started

    return run


LOGGERS = ("terrazzo", "uvicorn.error")


def test_options_become_settings(command, tmp_path):
    (tmp_path / "keys").write_text("correct-horse")
    options = ["--port", "0", "--api-key-file", tmp_path / "keys", "--max-batch-tokens", "4096", "--max-queue", "9000"]
    options += [
        "--threads",
        "2",
        "--max-body-mb",
        "0.5",
        "--no-reload",
        "--log",
        "json",
        "--allow-origin",
        "https://a.example",
    ]
    status, err, ((folders, settings),) = command("one", "two=dir", *options)
    assert (status, err, folders) == (0, "", ["one", "two=dir"])
    assert (settings.port, settings.threads, settings.max_body_bytes, settings.reload_seconds) == (0, 2, 2**19, 0)
    assert (settings.max_batch_tokens, settings.max_queue_tokens) == (4096, 9000)
    assert (settings.access_log, settings.allow_origins) == ("json", ("https://a.example",))
    assert settings.host == "127.0.0.1"


def test_a_server_open_to_others_is_warned_of(command, tmp_path):
    status, err, started = command("one", "--host", "0.0.0.0")
    assert status == 0 and err.startswith("warning: anyone who reaches 0.0.0.0:8080 may use it") and len(started) == 1
    assert "--api-key-file" in err
    assert "reaches [::] may" in command("one", "--host", "::", "--port", "0")[1]
    (tmp_path / "keys").write_text("correct-horse")
    assert command("one", "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys")[1] == ""
    assert command("one", "--host", "::1")[1] == ""


def test_what_cannot_be_served_ends_with_status_2(command, tmp_path):
    for options in (
        [],
        ["one", "--port", "70000"],
        ["one", "--api-key-file", tmp_path / "none"],
        ["one", "--log", "xml"],
        ["one", "--max-body-mb", "inf"],
        ["one", "--max-body-mb", "nan"],
        ["one", "--drain-seconds", "1e12"],
        ["one", "--drain-seconds", "nan"],
        ["one", "--threads", "100000"],
    ):
        status, err, started = command(*options)
        assert status == 2 and err and not started, options


def test_log_lines_are_json_with_their_traceback():
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.LogRecord(
            "terrazzo", logging.ERROR, "", 0, "it %s", ("failed",), (ValueError, error, error.__traceback__)
        )
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["message"]) == ("error", "it failed") and "ValueError: why" in line["traceback"]
