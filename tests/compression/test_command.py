"""What a person types, gets wrong, and interrupts."""

from __future__ import annotations

import pytest

from terrazzo.compression import pipeline


def command(command_line, *more):
    return command_line("compress", "MODEL", "--data", "rows.jsonl", *more, columns=120)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--faster", "4"), "--out: name the folder"),
        (("--out", "o"), "nothing to optimise"),
        (("--under", "5", "--out", "o"), "--under 5: write a time with its unit, as 5ms or 0.2s"),
        (("--under", "5ms", "--faster", "4", "--out", "o"), "both ask for speed"),
        (("--faster", "4", "--max-drop", "-1", "--out", "o"), "drop -1: points of the metric"),
        (("--faster", "4", "--effort", "minuts", "--out", "o"), "did you mean 'minutes'"),
        (("--faster", "4", "--seed", "-3", "--out", "o"), "seed -3: from 0"),
    ],
)
def test_what_was_typed_wrong_is_said_before_anything_is_read(command_line, more, said) -> None:
    status, _, err = command(command_line, *more)
    assert status == 2 and said in err


def test_stopping_says_how_to_go_on(command_line, monkeypatch) -> None:
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", stopped)
    status, out, _ = command(command_line, "--faster", "4", "--out", "fast")
    assert status == 130 and b"the same command goes on with fast" in out
    status, out, _ = command(command_line, "--faster", "4", "--dry-run")
    assert status == 130 and b"goes on" not in out
