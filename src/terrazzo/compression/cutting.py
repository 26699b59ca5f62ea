"""Heads and units cut to a time: planned by the latency table, cut by ZipLM, trained, in one round or several.

Reference: ZipLM (arXiv 2302.04089), sections 3 and 4.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from terrazzo.compression import ziplm
from terrazzo.compression.candidates import Candidate, Log, Workshop
from terrazzo.compression.database import Database
from terrazzo.compression.goal import Goal
from terrazzo.compression.ground import Start
from terrazzo.compression.latency import LatencyTable
from terrazzo.compression.means import Means
from terrazzo.compression.offers import Offer, Sketch
from terrazzo.compression.recover import RecoverConfig, recover
from terrazzo.compression.search import Found, search_plan
from terrazzo.compression.sensitivity import weighed_errors
from terrazzo.compression.shrink import planned_config, stitch_unchecked
from terrazzo.compression.solver import Unreachable, choose_levels
from terrazzo.compression.statistics import collect, output_projections
from terrazzo.compression.subject import Subject, batches, drop_of
from terrazzo.nn import Encoder
from terrazzo.tasks.model import TaskModel

#: The share of the time asked for that a plan is made for, because predictions are a few percent off.
MARGIN = 0.95
#: Plans that are made until one is as fast as it was predicted to be, each aimed so much below what the last missed.
_ATTEMPTS, _FURTHER = 3, 0.99
#: How much faster than asked a plan must be as measured to be the last, because times that are measured again differ.
_SPARE = 1.04
#: Further times whose one-shot drop is sketched, as shares of the way from the uncut model to the one asked for.
_SKETCHED = (0.25, 0.5, 0.75)


class Cutter:
    """Cuts one model for one runtime; every plan starts from what the round before it came to.

    Args:
        table: of the dense shape in the runtime.
        whole: the dense model in that runtime.
        work: where searches and trainings lie, so that they go on.
        start: a model that was cut before, from which cuts start; None is the dense one.
    """

    def __init__(
        self,
        subject: Subject,
        shop: Workshop,
        table: LatencyTable,
        whole: Offer,
        means: Means,
        work: Path,
        seed: int,
        log: Log,
        start: Start | None = None,
    ) -> None:
        self.subject, self.shop, self.table, self.whole, self.means = subject, shop, table, whole, means
        self.work, self.seed, self.log = work, seed, log
        self.first = Round(self, subject.model if start is None else start.model, 0)
        self.first_faster = whole.faster if start is None else start.faster
        self.offers: list[Offer] = []
        self.sketches: list[Sketch] = []

    def one_shot(self, goal: Goal, factor: float) -> Candidate | None:
        """A model that is `factor` times as fast as fp32, not trained; where a plan misses the goal by a prediction's
        error, or is not as small as asked, one that is cut a little more. None where no cut is enough."""
        aimed, shot, round_ = factor / MARGIN, None, self.first
        for attempt in range(_ATTEMPTS):
            try:
                found = round_.plan(self.ms_of(aimed))
            except Unreachable as error:
                self._say_floor(aimed, error)
                return shot
            predicted = self.faster_of(round_.ms(found.sizes))
            self.log(f"choose    {describe(round_.database, found.sizes)}; predicted {predicted:.2f}x as fast")
            if attempt == 0:
                self.sketch(round_, factor, found.coefficients)
            key = f"oneshot-{attempt}-{_short(found.sizes)}"
            shot = self._made(key, "one-shot", partial(round_.cut, found.sizes), round_, found.sizes)
            if shot.offer.faster >= _SPARE * factor and shot.offer.small_enough(goal):
                return shot
            smaller = 1.0 if goal.smaller is None else goal.smaller / shot.offer.smaller
            aimed *= max(1.0, _SPARE * factor / shot.offer.faster, smaller) / _FURTHER
        return shot

    def ms_of(self, factor: float) -> float:
        """Milliseconds of a model so many times as fast as fp32, on the scale of those of the whole one."""
        return self.whole.ms * self.whole.faster / factor

    def faster_of(self, ms: float) -> float:
        """The converse."""
        return self.whole.faster * self.whole.ms / ms

    def trained(self, shot: Candidate) -> Candidate:
        """The model of `shot`, trained; where the effort is gradual and the way is long, cut and trained in rounds."""
        way = shot.offer.faster / self.first_faster
        rounds = 1 if self.means.gradual is None else _rounds(way, self.means.gradual)
        try:
            return self._trained(shot, way, rounds)
        except Unreachable:  # hardly anything is left that a round could take
            self.log("recover   in one round: this far the table's sums leave nothing to choose")
            return self._trained(shot, way, 1)

    def _trained(self, shot: Candidate, way: float, rounds: int) -> Candidate:
        model, sizes = self.first.model, shot.offer.sizes
        for number in range(rounds):
            last = number == rounds - 1
            round_ = self.first if number == 0 else Round(self, model, number)
            if rounds > 1:
                step = self.first_faster * way ** ((number + 1) / rounds)
                found = round_.plan(self.aimed(shot) if last else self.ms_of(step))
                sizes = found.sizes
                self.log(f"recover   round {number + 1} of {rounds}: {describe(round_.database, sizes)}...")
            else:
                self.log("recover   learning back from the dense model...")
            student = partial(round_.cut, sizes)
            if last:
                make = partial(self._recovered, student, number, self.means.recover)
                return self._made(f"recovered-{_short(sizes)}", "distilled", make, round_, sizes)
            model = self._recovered(student, number, self.means.between)
        raise AssertionError("at least one round")

    def aimed(self, shot: Candidate) -> float:
        """A little below the predicted milliseconds of the one-shot model, whose measured ones were enough; those where
        nothing was predicted, because the model runs in another precision."""
        predicted_ms = shot.offer.predicted_ms
        return (shot.offer.ms if predicted_ms is None else predicted_ms) * _FURTHER

    def sketch(self, round_: Round, factor: float, coefficients: Sequence[float]) -> None:
        """One-shot models between the uncut model and the one asked for, by the coefficients of its plan: their drop as
        measured, their speed as predicted."""
        rows, dense, least = self.subject.choose.examples, self.subject.dense_answers, self.first_faster
        for share in _SKETCHED if factor > least else ():
            sizes = round_.sizes_at(self.ms_of(least + share * (factor - least)), coefficients)
            drop = drop_of(self.subject.task, rows, dense, self.subject.answers(rows, round_.cut(sizes)))
            faster = self.faster_of(round_.ms(sizes))
            self.sketches.append(Sketch(faster=faster, drop=drop.points))
            self.log(f"sketched  {faster:.2f}x as fast (predicted): {drop.points:+.2f} points lost, one-shot")

    def _recovered(self, student: partial[TaskModel], number: int, options: RecoverConfig) -> TaskModel:
        folder, threads = self.work / f"recover-{number}-{_short(student.args)}", torch.get_num_threads()
        return recover(self.subject, student, options, folder, threads, self.seed).model

    def _made(self, key: str, how: str, make: partial[TaskModel], round_: Round, sizes: Mapping[str, int]) -> Candidate:
        name = f"ZipLM, {self.shop.precision}, {how}"
        made = self.shop.candidate(key, name, make, sizes, round_.ms(sizes), trained=how == "distilled")
        self.offers.append(made.offer)
        return made

    def _say_floor(self, aimed: float, error: Unreachable) -> None:
        share = (self.table.remainder_ms + error.least) / self.table.dense_ms
        most = self.faster_of(share * self.whole.ms)
        self.log(
            f"choose    {aimed:.2f}x is aimed at, and {most:.2f}x is the most that cutting can reach: what is left of "
            "the model without any heads and units takes the rest"
        )


class Round:
    """Cutting of one model: the dense one, or what an earlier round left of it."""

    def __init__(self, cutter: Cutter, model: TaskModel, number: int) -> None:
        self.cutter, self.model, self.number = cutter, model, number
        self.table, self.whole = cutter.table, cutter.whole

    @cached_property
    def database(self) -> Database:
        """Every size of every site with the weights that make up for what is cut."""
        cutter, encoder = self.cutter, self.model.encoder
        cutter.log("propose   heads and units to cut, by ZipLM...")
        documents = cutter.subject.learn.flat[: cutter.means.calibration]
        found = collect(encoder, batches(documents), output_projections(encoder.config), cutter.subject.select)
        return ziplm.database(encoder, found.grams)

    @cached_property
    def costs(self) -> dict[str, list[tuple[int, float]]]:
        """What every size of every site costs the answers."""
        cutter = self.cutter
        documents = cutter.subject.learn.flat[-cutter.means.loss_rows :]
        return weighed_errors(self.model, self.database, list(batches(documents)), self._dressed)

    def plan(self, ms: float) -> Found:
        """The best sizes that the table says take `ms`.

        Raises:
            Unreachable: none do.
        """
        cutter, errors = self.cutter, self.costs

        def loss(sizes: Mapping[str, int]) -> float:
            return cutter.subject.loss(self.cut(sizes), cutter.means.loss_rows)

        prices, options, budget = self.table.prices(errors), cutter.means.search, self._budget(ms)
        state = cutter.work / f"search-{self.number}-{_short([errors, prices, budget])}.json"
        return search_plan(errors, prices, budget, loss, seed=cutter.seed, options=options, state=state)

    def sizes_at(self, ms: float, coefficients: Sequence[float]) -> dict[str, int]:
        """The sizes that take `ms` by the table, at the least error weighed by the coefficients of the sites."""
        errors = self.costs
        each = zip(errors.values(), coefficients, strict=True)
        weighed = [[weight * error for _, error in levels] for levels, weight in each]
        chosen = choose_levels(weighed, list(self.table.prices(errors).values()), self._budget(ms))
        return {site: errors[site][level][0] for site, level in zip(errors, chosen, strict=True)}

    def cut(self, sizes: Mapping[str, int]) -> TaskModel:
        """The model with these sizes, not trained."""
        return self._dressed(stitch_unchecked(self.model.encoder, self.database, sizes))

    def _dressed(self, encoder: Encoder) -> TaskModel:
        small = self.cutter.subject.with_encoder(encoder)
        small.head.load_state_dict(self.model.head.state_dict())
        return small

    def ms(self, sizes: Mapping[str, int]) -> float:
        """Predicted milliseconds: the table's share of the uncut model's time, of that time as measured."""
        share = self.table.predict(planned_config(self.database, sizes)) / self.table.dense_ms
        return self.whole.ms * share

    def _budget(self, ms: float) -> float:
        return self.table.budget(self.table.dense_ms * ms / self.whole.ms)


def describe(database: Database, sizes: Mapping[str, int]) -> str:
    """What is left, in words."""
    shape = planned_config(database, sizes)
    heads = sum(len(shape.layer_heads(layer)) for layer in range(shape.depth))
    units = sum(shape.layer_mlp_width(layer) for layer in range(shape.depth))
    return f"{heads} of {shape.depth * shape.num_heads} heads and {units:,} of {shape.depth * shape.mlp_width:,} units"


def _short(value: object) -> str:
    """A few characters of a hash: what is made of other sizes, or searched by other numbers, lies elsewhere."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _rounds(faster: float, each: float) -> int:
    """Rounds of at most `each` that together make a model so many times as fast."""
    return max(1, math.ceil(math.log(faster) / math.log(each) - 1e-9))
