"""The one command: measure, propose, choose, apply, recover, and prove.

A ladder of means, the cheapest first: int8; heads and units cut to a time by ZipLM, one-shot; the same, distilled. The
first that reaches the goal on the rows to choose by is proved on rows that nothing else has seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from terrazzo.checkpoint import atomic_folder
from terrazzo.checkpoint.atomic import usable
from terrazzo.compress import ziplm
from terrazzo.compress.candidates import Candidate, Log, Workshop, refuse_other_files
from terrazzo.compress.database import Database
from terrazzo.compress.goal import Goal
from terrazzo.compress.latency import LatencyTable
from terrazzo.compress.offers import GoalUnreachable, Offer
from terrazzo.compress.plan import Plan, write_plan
from terrazzo.compress.proof import PROOF, Claim, NotProved, Proof, prove_folder, write_proof
from terrazzo.compress.quantise import BitPlan, Quantised, quantise, requantise
from terrazzo.compress.recover import EFFORTS, Effort, RecoverConfig, recover
from terrazzo.compress.report import REPORT, Sketch, write_report
from terrazzo.compress.rows import Split, read_split
from terrazzo.compress.search import Found, SearchOptions, level_errors, search_plan
from terrazzo.compress.shrink import planned_config, stitch
from terrazzo.compress.solver import Unreachable, choose_levels
from terrazzo.compress.speed import PLAIN, Bench, Here, fastest, without_answer
from terrazzo.compress.statistics import collect, output_projections
from terrazzo.compress.subject import Subject, batches, drop_of, open_subject, refuse_guessing
from terrazzo.compress.timing import Times
from terrazzo.config import config, nearest, to_dict
from terrazzo.errors import InputError
from terrazzo.runtime import Precision
from terrazzo.runtime.building import installed
from terrazzo.runtime.folder import RuntimeName
from terrazzo.tasks.model import TaskModel, load_task_model, model_fingerprint, model_folder
from terrazzo.train.units import duration

PLAN = "plan.json"
#: The share of the time asked for that a plan is made for, because predictions are a few percent off.
MARGIN = 0.97
#: Plans that are made until one is as fast as it was predicted to be, each aimed so much below what the last missed.
_ATTEMPTS, _FURTHER = 3, 0.99
#: Further factors whose one-shot drop is sketched, as shares of the way from int8 alone to the one asked for.
_SKETCHED = (0.25, 0.5, 0.75)


@config
class Means:
    """How much work a compression takes.

    Args:
        search: of plans; loss_rows: rows to choose by that judge one.
        calibration: rows to learn from whose inputs weigh errors.
        recover: training of what was cut.
    """

    search: SearchOptions
    loss_rows: int
    calibration: int
    recover: RecoverConfig


_EFFORTS: Mapping[Effort, Means] = {
    "minutes": Means(
        search=SearchOptions(starts=12, failures=6, evaluations=40),
        loss_rows=300,
        calibration=512,
        recover=EFFORTS["minutes"],
    ),
    "hours": Means(
        search=SearchOptions(starts=100, failures=50, evaluations=500),
        loss_rows=1000,
        calibration=2048,
        recover=EFFORTS["hours"],
    ),
}


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What a compression came to.

    Args:
        folder: the model, ready to serve; proof: of every figure; offers: everything that was made on the way.
    """

    folder: Path
    proof: Proof
    offers: tuple[Offer, ...]
    seconds: float

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.folder / REPORT

    def __str__(self) -> str:
        return "\n".join(self.proof.lines())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A compression as it is asked for: see `compress`."""

    model: str
    data: str
    goal: Goal
    out: Path
    held_out: str | None = None
    on: Here = Here()
    effort: Effort = "minutes"
    fields: Mapping[str, str] | None = None
    seed: int = 0


def compress(
    model: str | Path,
    data: str | Path,
    goal: Goal,
    out: str | Path,
    *,
    held_out: str | Path | None = None,
    on: Here | None = None,
    effort: str = "minutes",
    fields: Mapping[str, str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
    log: Log | None = None,
) -> Compressed | None:
    """Make `out`: the task model in `model`, as fast or as small as `goal` says on this machine, and the proof.

    Work lies in a hidden folder beside `out` until the end, so that the same call goes on after an interruption.

    Args:
        data: labelled rows of the task to learn from; those that the model was fine-tuned on may be among them.
        held_out: labelled rows that it was not fine-tuned on: a quarter chooses, the others prove. None takes half of
            `data`; if the model knows those by heart, it seems to lose more than it does.
        on: threads and batch that speed is meant for; None is one thread and about 1,024 tokens.
        effort: "minutes" or "hours": how long is searched and trained.
        dry_run: say what would be done and how far it is from the goal, and make nothing.
        log: takes lines for a person.

    Returns:
        None for a dry run.

    Raises:
        InputError: a model, rows or a goal that cannot be used; too few rows to prove the drop.
        GoalUnreachable: nothing that was made reaches the goal; carries what was measured.
        NotProved: the model is in `out`, and its proof does not show the goal, or was withheld on a noisy machine.
        TooNoisy: the machine does too much else for a plan to be made.
    """
    if effort not in _EFFORTS:
        raise InputError(f"effort {effort!r}: {nearest(effort, _EFFORTS)}")
    asked = Asked(
        model=str(model),
        data=str(data),
        goal=goal,
        out=Path(out),
        held_out=None if held_out is None else str(held_out),
        on=on or Here(),
        effort="hours" if effort == "hours" else "minutes",
        fields=fields,
        seed=seed,
    )
    return Compression(asked, log or (lambda line: None)).run(dry_run)


class Compression:
    """One run of the five verbs.

    Args:
        bench: makes what times models.
    """

    def __init__(self, asked: Asked, log: Log, bench: Callable[[Subject, Here], Bench] = Bench) -> None:
        self.asked, self.goal, self.log, self.began = asked, asked.goal, log, time.perf_counter()
        self.effort = _EFFORTS[asked.effort]
        source = open_subject(asked.model)
        assert source.task is not None
        task = source.task.model.task
        with usable(asked.out):
            refuse_other_files(asked.out, ())
        self.split: Split = read_split(task, asked.data, asked.held_out, self.goal.drop, asked.seed, asked.fields)
        self.subject = Subject(source, self.split)
        self.bench = bench(self.subject, asked.on)
        self.fingerprint = model_fingerprint(model_folder(source.folder))
        self.work = asked.out.resolve().with_name(f".{asked.out.name}.work") / self._key()
        self.offers: list[Offer] = []
        self.sketches: list[Sketch] = []

    def run(self, dry_run: bool) -> Compressed | None:
        """Everything, or, dry, everything that only measures."""
        self._say_rows()
        self.measure()
        if dry_run:
            self.propose()
            self._say_dry()
            return None
        self.work.mkdir(parents=True, exist_ok=True)
        chosen = self.best_candidate()
        if chosen is None:
            write_report(self.work.parent, self.goal, None, self.offers, self.sketches, self.subject.task.kind)
            raise GoalUnreachable(self.goal, self.offers, self._advice())
        return self.finish(chosen)

    # measure

    def measure(self) -> None:
        """The dense model: its metric on the rows to choose by, its milliseconds everywhere."""
        rows = self.subject.choose.examples
        refuse_guessing(self.subject.task, rows, self.shop.dense_answers, self.asked.data)
        scores = self.subject.task.score(rows, self.shop.dense_answers)
        times, name = self.times, self.fp32
        self.log(
            f"measure   {scores.main} {100 * scores.value:.2f}; {times.ms[name]:.2f} ms a batch of "
            f"{len(self.bench.lengths)} texts, {sum(self.bench.lengths):,} tokens, in the fastest fp32 runtime "
            f"({name}), {times.ms[PLAIN]:.2f} ms in plain PyTorch"
        )

    @cached_property
    def times(self) -> Times:
        """Of the dense model everywhere."""
        return self.bench.beside()

    @property
    def fp32(self) -> RuntimeName:
        return fastest(self.times)

    @cached_property
    def precision(self) -> Precision:
        """int8 where this CPU has its products and the packages are there, else fp32."""
        return "int8" if self.bench.machine.has_int8 and installed("openvino", "int8") else "fp32"

    @cached_property
    def shop(self) -> Workshop:
        runtime: RuntimeName = "openvino" if self.precision == "int8" else self.fp32
        return Workshop(self.subject, self.bench, self.work, runtime, self.precision, self.fp32, self._detail)

    # propose

    def propose(self) -> LatencyTable:
        """What heads and units cost in the runtime that the model will have."""
        return self.table

    @cached_property
    def table(self) -> LatencyTable:
        self.log(f"propose   what heads and units cost in {self.shop.runtime} {self.precision} on this machine...")
        return self.bench.table(self.shop.runtime, self.precision)

    @cached_property
    def database(self) -> Database:
        """Every size of every site with the weights that make up for what is cut."""
        self.log("propose   heads and units to cut, by ZipLM...")
        encoder = self.subject.encoder
        documents = self.subject.learn.flat[: self.effort.calibration]
        found = collect(encoder, batches(documents), output_projections(encoder.config), self.subject.select)
        return ziplm.database(encoder, found.grams)

    # choose

    @property
    def target_ms(self) -> float | None:
        """Milliseconds that the goal leaves a batch."""
        if self.goal.under_ms is not None:
            return self.goal.under_ms
        return None if self.goal.faster is None else self.times.ms[self.fp32] / self.goal.faster

    def plan(self, target_ms: float, whole_ms: float) -> Found:
        """The best sizes that the table says run in `target_ms`, where the uncut model takes `whole_ms`."""
        table = self.table
        errors = level_errors(self.database)
        budget = table.budget(table.dense_ms * target_ms / whole_ms)

        def loss(sizes: Mapping[str, int]) -> float:
            return self.subject.loss(self.cut(sizes), self.effort.loss_rows)

        state = self.work / f"search-{target_ms:.4f}.json"
        return search_plan(
            errors,
            table.prices(errors),
            budget,
            loss,
            seed=self.asked.seed,
            options=self.effort.search,
            state=state,
        )

    # apply

    def cut(self, sizes: Mapping[str, int]) -> TaskModel:
        """The model with these sizes, not trained."""
        return self.subject.with_encoder(stitch(self.subject.encoder, self.database, sizes))

    def best_candidate(self) -> Candidate | None:
        """The cheapest rung of the ladder that reaches the goal on the rows to choose by."""
        return self.few_bits() if self.target_ms is None else self.fewer_parts()

    def few_bits(self) -> Candidate | None:
        """A model as small as asked: the bits of every matrix by what they cost, then trained at those bits."""
        assert self.goal.smaller is not None
        budget = int(4 * sum(one.numel() for one in self.subject.model.parameters()) / self.goal.smaller)
        documents = [without_answer(one) for one in self.subject.learn.flat[: self.effort.calibration]]
        self.log(f"propose   bits of every matrix, {budget / 1e6:.1f} MB in all...")
        try:
            few = self.offer(
                self.shop.packed(
                    "bits",
                    "mixed bits, one-shot",
                    lambda: quantise(self.subject.model, list(batches(documents)), budget=budget),
                )
            )
        except Unreachable as error:
            self.log(
                f"choose    {budget / 1e6:.1f} MB are asked, and {error.least / 1e6:.1f} MB is the least at 2 bits"
            )
            return None
        if self._sure(few.offer):
            return few
        self.log("recover   learning back from the dense model, at these bits...")
        plan = BitPlan(bits=few.offer.bits)
        trained = self.offer(
            self.shop.packed("bits-trained", "mixed bits, distilled", partial(self.rounded, few, plan))
        )
        return trained if trained.offer.meets(self.goal) else None

    def fewer_parts(self) -> Candidate | None:
        """A model as fast as asked: int8, then heads and units cut, then trained."""
        whole = self.offer(self.shop.candidate("whole", self.precision, lambda: self.subject.model))
        if whole.offer.fast_enough(self.goal) and whole.offer.small_enough(self.goal) and self._sure(whole.offer):
            return whole
        shot = self.one_shot(whole.offer)
        if shot is None or not (shot.offer.fast_enough(self.goal) and shot.offer.small_enough(self.goal)):
            return None
        if self._sure(shot.offer):
            return shot
        self.log("recover   learning back from the dense model...")
        sizes, name = shot.offer.sizes, f"ZipLM, {self.precision}, distilled"
        predicted = shot.offer.predicted_ms
        trained = self.offer(self.shop.candidate("recovered", name, lambda: self.recovered(sizes), sizes, predicted))
        return trained if trained.offer.meets(self.goal) else None

    def one_shot(self, whole: Offer) -> Candidate | None:
        """A cut model that is as fast as asked, not trained; where a plan misses by a prediction's error, one that is
        cut a little more. None where no cut is enough."""
        assert self.target_ms is not None
        aimed, shot = self.target_ms * MARGIN, None
        for attempt in range(_ATTEMPTS):
            try:
                found = self.plan(aimed, whole.ms)
            except Unreachable as error:
                self._say_floor(error, whole.ms)
                return shot
            predicted = whole.ms * self._share(found.sizes)
            self.log(f"choose    {self._describe(found.sizes)}; predicted {predicted:.2f} ms")
            if attempt == 0:
                self.sketch(whole, found)
            name, sizes = f"ZipLM, {self.precision}, one-shot", found.sizes
            shot = self.offer(
                self.shop.candidate(f"oneshot-{attempt}", name, partial(self.cut, sizes), sizes, predicted)
            )
            if shot.offer.fast_enough(self.goal):
                return shot
            aimed *= self.target_ms / shot.offer.ms * _FURTHER
        return shot

    # recover

    def recovered(self, sizes: Mapping[str, int]) -> TaskModel:
        """The cut model after training."""
        student, threads = self.cut(sizes), torch.get_num_threads()
        return recover(
            self.subject, student, self.effort.recover, self.work / "recover", threads, self.asked.seed
        ).model

    def rounded(self, few: Candidate, plan: BitPlan) -> Quantised[TaskModel]:
        """The model of few bits after training at these bits."""
        trained = recover(
            self.subject,
            load_task_model(few.folder).model,
            self.effort.recover,
            self.work / "recover-bits",
            torch.get_num_threads(),
            self.asked.seed,
            plan,
        )
        return requantise(trained.model, plan)

    # prove

    def finish(self, chosen: Candidate) -> Compressed:
        """Prove the candidate, write the folder, and take away the work.

        Raises:
            NotProved: after the folder is written, where the proof does not show the goal.
        """
        asked, offer = self.asked, chosen.offer
        self.log(f"prove     {offer.name}, on {len(self.split.proof):,} rows that nothing else has seen...")
        claim = Claim(
            goal=self.goal,
            on=asked.on,
            model=str(Path(asked.model).resolve()),
            model_fingerprint=self.fingerprint,
            data=_resolved(asked.data),
            held_out=None if asked.held_out is None else _resolved(asked.held_out),
            seed=asked.seed,
            fields=asked.fields or {},
        )
        proof = prove_folder(chosen.folder, self.subject, self.bench, claim, offer.predicted_ms)
        with atomic_folder(asked.out) as folder:
            shutil.copytree(chosen.folder, folder, dirs_exist_ok=True)
            write_plan(folder / PLAN, self._plan_of(offer))
            write_proof(folder, proof)
            write_report(folder, self.goal, proof, self.offers, self.sketches, self.subject.task.kind)
        shutil.rmtree(self.work.parent, ignore_errors=True)
        for line in proof.lines():
            self.log(f"          {line}")
        seconds = time.perf_counter() - self.began
        self.log(f"wrote     {asked.out} in {duration(seconds)}; next: terrazzo serve {asked.out}")
        if not proof.proved:
            raise NotProved(f"{asked.out} is written, but its proof does not show the goal: {'; '.join(proof.why)}")
        return Compressed(folder=asked.out, proof=proof, offers=tuple(self.offers), seconds=seconds)

    # the frontier

    def offer(self, candidate: Candidate) -> Candidate:
        """Remember what was made."""
        self.offers.append(candidate.offer)
        return candidate

    def sketch(self, whole: Offer, found: Found) -> None:
        """One-shot models between int8 alone and the goal, by the coefficients of the plan for the goal: their drop as
        measured, their speed as predicted."""
        assert self.target_ms is not None
        fp32, rows = self.times.ms[self.fp32], self.subject.choose.examples
        for share in _SKETCHED:
            sizes = self._sizes_at(whole.ms + share * (self.target_ms - whole.ms), whole.ms, found.coefficients)
            said = self.subject.answers(rows, self.cut(sizes))
            drop = drop_of(self.subject.task, rows, self.shop.dense_answers, said)
            predicted = fp32 / (whole.ms * self._share(sizes))
            self.sketches.append(Sketch(faster=predicted, drop=drop.points))
            self._detail(f"sketched  {predicted:.2f}x as fast (predicted): {drop.points:+.2f} points lost, one-shot")

    def _sizes_at(self, target_ms: float, whole_ms: float, coefficients: Sequence[float]) -> dict[str, int]:
        """The sizes that run in `target_ms` by the table, at least error weighed by the coefficients of the sites."""
        errors, table = level_errors(self.database), self.table
        prices = table.prices(errors)
        weighed = [
            [weight * error for _, error in errors[site]] for site, weight in zip(errors, coefficients, strict=True)
        ]
        budget = table.budget(table.dense_ms * target_ms / whole_ms)
        levels = choose_levels(weighed, list(prices.values()), budget)
        return {site: errors[site][level][0] for site, level in zip(errors, levels, strict=True)}

    # what a person reads

    def _say_rows(self) -> None:
        task, split = self.subject.task, self.split
        origin = "" if split.same_file else " held out"
        self.log(
            f"rows      {task.kind}: {len(split.learn):,} to learn from, {len(split.choose):,} to choose by and "
            f"{len(split.proof):,} to prove by{origin}; goal: {self.goal}"
        )

    def _say_dry(self) -> None:
        if self.target_ms is None:
            return
        floor = self.table.remainder_ms / self.table.dense_ms
        self.log(
            f"dry run   {self.target_ms:.2f} ms are asked; {self.shop.runtime} {self.precision} with nothing left to "
            f"cut would take {floor:.0%} of its uncut time; nothing was made"
        )

    def _say_floor(self, error: Unreachable, whole_ms: float) -> None:
        table = self.table
        least = whole_ms * (table.remainder_ms + error.least) / table.dense_ms
        self.log(
            f"choose    {self.target_ms:.2f} ms are asked, and {least:.2f} ms is the least that cutting can reach: "
            "what is left of the model without any heads and units"
        )

    def _advice(self) -> str:
        if self.asked.effort == "minutes":
            return "--effort hours trains longer"
        return ""

    def _describe(self, sizes: Mapping[str, int]) -> str:
        shape = planned_config(self.database, sizes)
        heads = sum(len(shape.layer_heads(layer)) for layer in range(shape.depth))
        units = sum(shape.layer_mlp_width(layer) for layer in range(shape.depth))
        return (
            f"{heads} of {shape.depth * shape.num_heads} heads and {units:,} of {shape.depth * shape.mlp_width:,} units"
        )

    def _share(self, sizes: Mapping[str, int]) -> float:
        """Predicted time as a share of the uncut model's."""
        return self.table.predict(planned_config(self.database, sizes)) / self.table.dense_ms

    def _sure(self, offer: Offer) -> bool:
        """Whether training is not needed: the drop is below the goal even at the end of its interval."""
        return offer.drop_high <= self.goal.drop

    def _plan_of(self, offer: Offer) -> Plan:
        return Plan(
            sizes=offer.sizes,
            bits=offer.bits,
            runtime=offer.runtime,
            precision=offer.precision,
            target=self.goal,
            predicted_ms=offer.predicted_ms or offer.ms,
            lengths=self.bench.lengths,
            threads=self.asked.on.threads,
            seed=self.asked.seed,
            machine=self.bench.machine.key,
        )

    def _detail(self, line: str) -> None:
        self.log(line if line.startswith(("made", "sketched")) else f"          {line}")

    def _key(self) -> str:
        """Of all that the work depends on; other work lies beside it."""
        asked = self.asked
        what = [
            self.fingerprint,
            self.split.fingerprint,
            to_dict(asked.goal),
            to_dict(asked.on),
            asked.effort,
            asked.seed,
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _resolved(source: str) -> str:
    """A file by its whole path; a data set's name as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


__all__ = ["PLAN", "PROOF", "Compressed", "Compression", "compress"]
