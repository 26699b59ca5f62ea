from __future__ import annotations

import math
import sys
import types

import pytest

from terrazzo.errors import InputError
from terrazzo.train.tensorboard import TensorBoardHook


class Writer:
    def __init__(self, logdir, purge_step=None):
        self.purge_step, self.scalars = purge_step, []
        Writer.last = self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_numbers_become_scalars_and_a_resume_hides_the_steps_taken_again(monkeypatch, tmp_path):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    hook = TensorBoardHook(tmp_path, resume_step=7)
    hook.on_step({"step": 8, "stage": "a", "loss": 2.0, "grad_norm": math.nan, "peak_fraction": None, "tokens": 10})
    hook.on_evaluation({"step": 8, "stage": "a", "heldout_loss": 3.0})
    hook.close()
    assert Writer.last.purge_step == 8 and Writer.last.closed
    assert Writer.last.scalars == [("train/loss", 2.0, 8), ("heldout/loss", 3.0, 8)]


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"terrazzo\[track\]"):
        TensorBoardHook(tmp_path)
