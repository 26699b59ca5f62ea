"""A model as small as asked: the bits of every matrix by what they cost, then trained at those bits.

Reference: Q-BERT (arXiv 1909.05840), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from terrazzo.compression.candidates import Candidate, Log, Workshop
from terrazzo.compression.means import Means
from terrazzo.compression.quantise import BitPlan, Quantised, packed_bytes, quantise, requantise, uniform_plan
from terrazzo.compression.quantise.plan import LEVELS
from terrazzo.compression.recover import recover
from terrazzo.compression.solver import Unreachable
from terrazzo.compression.speed import without_answer
from terrazzo.compression.subject import Subject, batches
from terrazzo.packed import Packed
from terrazzo.tasks.model import TaskModel, load_task_model


class Packer:
    """Gives the matrices of one model few bits.

    Args:
        smaller: times as small as fp32; work: where training lies, so that it goes on.
    """

    def __init__(
        self, subject: Subject, shop: Workshop, smaller: float, means: Means, work: Path, seed: int, log: Log
    ) -> None:
        self.subject, self.shop, self.means, self.work, self.seed, self.log = subject, shop, means, work, seed, log
        self.budget = budget_of(subject, smaller)

    def one_shot(self) -> Candidate:
        """A model of so many bytes, not trained; where fewest bits take more, the model of fewest bits."""
        self.log(f"propose   bits of every matrix, {self.budget / 1e6:.1f} MB in all...")
        calibration = self._calibration()
        try:
            return self._made("bits", calibration, self.budget)
        except Unreachable as error:
            self.log(f"choose    {self.budget / 1e6:.1f} MB are asked, and {error.least / 1e6:.1f} MB are the least")
            return self._made("bits-least", calibration, math.ceil(error.least))

    def trained(self, few: Candidate) -> Candidate:
        """The model of `few` after training at its bits."""
        self.log("recover   learning back from the dense model, at these bits...")
        return self.shop.packed("bits-trained", "mixed bits, distilled", partial(self._rounded, few), trained=True)

    def _made(self, key: str, calibration: Sequence[Packed], budget: int) -> Candidate:
        make = partial(quantise, self.subject.model, calibration, budget=budget)
        return self.shop.packed(key, "mixed bits, one-shot", make)

    def _calibration(self) -> list[Packed]:
        documents = self.subject.learn.flat[: self.means.calibration]
        return list(batches([without_answer(one) for one in documents]))

    def _rounded(self, few: Candidate) -> Quantised[TaskModel]:
        plan = BitPlan(bits=few.offer.bits)
        trained = recover(
            self.subject,
            lambda: load_task_model(few.folder).model,
            self.means.recover,
            self.work / "recover-bits",
            torch.get_num_threads(),
            self.seed,
            plan,
        )
        return requantise(trained.model, plan)


def budget_of(subject: Subject, smaller: float) -> int:
    """Bytes of the files of weights of a model so many times as small as fp32."""
    return int(4 * sum(one.numel() for one in subject.model.parameters()) / smaller)


def least_bytes(subject: Subject) -> int:
    """Bytes of the model with the fewest bits everywhere."""
    return packed_bytes(subject.model, uniform_plan(subject.model, min(LEVELS)))
