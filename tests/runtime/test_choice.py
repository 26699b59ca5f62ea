"""The fastest runtime is found by measuring, remembered, and measured anew where anything differs."""

from __future__ import annotations

import json
import time

import pytest
import torch

from terrazzo.errors import InputError
from terrazzo.nn import bert
from terrazzo.runtime.choice import choose, memory_file
from terrazzo.runtime.machine import Machine

SHAPE = bert("tiny", 50, max_len=128)
MACHINE = Machine(cpu="one", instructions=("avx2",), cores=2)


class Timed:
    """A runtime that takes so many microseconds a batch and a token."""

    precision, pads, batch_tokens = "fp32", False, 1024

    def __init__(self, name: str, batch: float, token: float, streams: int | None) -> None:
        self.name, self.batch, self.token, self.streams, self.config = name, batch, token, streams or 1, SHAPE

    def __call__(self, batch, select_M=None):
        time.sleep((self.batch + self.token * batch.num_tokens) * 1e-6)
        return torch.zeros(batch.num_tokens, 1)


class Openers(dict):
    """Candidates that count how often they are opened."""

    def __init__(self, **times: tuple[float, float]) -> None:
        self.opened = 0
        super().__init__({name: self._opener(name, *spent) for name, spent in times.items()})

    def _opener(self, name, batch, token):
        def open_runtime(streams):
            self.opened += 1
            return Timed(name, batch, token, streams)

        return open_runtime


def chosen(openers, memory, machine=MACHINE, **fields):
    return choose(openers, SHAPE.replace(**fields), "fp32", seconds=0.05, machine=machine, memory=memory)


def test_the_quickest_wins_and_is_remembered(tmp_path) -> None:
    openers, memory = Openers(slow=(0, 100), quick=(0, 25)), tmp_path / "deep" / "runtimes.json"
    first = chosen(openers, memory)
    assert first.choice.runtime == "quick" and not first.remembered
    assert first.choice.rates["quick"] > 1.5 * first.choice.rates["slow"]
    assert first.choice.streams == 2, "two sleepers at a time sleep half as long"
    opened = openers.opened
    second = chosen(openers, memory)
    assert second.choice == first.choice and second.remembered and openers.opened == opened


def test_large_batches_win_where_a_batch_costs(tmp_path) -> None:
    alone = Machine(cpu="one", instructions=(), cores=1)
    assert chosen(Openers(one=(20_000, 1)), tmp_path / "a", alone).choice.batch_tokens == 1024
    assert chosen(Openers(one=(20_000, 1)), tmp_path / "b", alone, max_len=8).choice.batch_tokens == 160, "all there is"


@pytest.mark.parametrize(
    "other",
    [
        {"machine": Machine(cpu="another", instructions=("avx2",), cores=2)},
        {"machine": Machine(cpu="one", instructions=("avx2", "avx512f"), cores=2)},
        {"depth": 3},
    ],
)
def test_another_machine_or_shape_is_measured_anew(tmp_path, other) -> None:
    chosen(Openers(a=(0, 5), b=(0, 60)), tmp_path / "m.json")
    again = chosen(Openers(a=(0, 60), b=(0, 5)), tmp_path / "m.json", **other)
    assert not again.remembered and again.choice.runtime == "b"
    assert chosen(Openers(a=(0, 5), b=(0, 5)), tmp_path / "m.json").choice.runtime == "a", "the first stays"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "terrazzo-choices-1", "choices": {"k": {"runtime": 1}}}'])
def test_a_damaged_memory_is_ignored_with_a_warning(tmp_path, text) -> None:
    memory = tmp_path / "m.json"
    memory.write_text(text)
    with pytest.warns(UserWarning, match="damaged, so runtimes are measured again"):
        assert not chosen(Openers(a=(0, 5)), memory).remembered
    assert chosen(Openers(a=(0, 5)), memory).remembered
    assert json.loads(memory.read_text())["format"] == "terrazzo-choices-1"


def test_a_memory_that_cannot_be_written_does_not_stop_the_choice(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert chosen(Openers(a=(0, 5)), tmp_path / "file" / "m.json").choice.runtime == "a"


def test_candidates_that_cannot_be_opened_are_left_out(tmp_path) -> None:
    def broken(streams):
        raise InputError("no such package")

    openers = Openers(a=(0, 5)) | {"b": broken}
    choice = chosen(openers, tmp_path / "m.json").choice
    assert (choice.runtime, choice.left_out) == ("a", {"b": "no such package"})
    of_another_model = chosen(Openers(a=(0, 60), b=(0, 5)), tmp_path / "m.json")
    assert (of_another_model.choice.runtime, of_another_model.choice.left_out) == ("b", {}), "its weights may do"
    with pytest.raises(InputError, match="no such package"):
        chosen({"b": broken}, tmp_path / "m.json")


def test_the_memory_is_in_the_users_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memory_file() == tmp_path / "terrazzo" / "runtimes.json"
