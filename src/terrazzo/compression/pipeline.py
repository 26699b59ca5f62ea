"""The one command: measure, propose, choose, apply, recover, and prove.

A ladder of means, the cheapest first: int8; heads and units cut to a time by ZipLM, one-shot; the same, distilled. The
first that reaches the goal on the rows to choose by is proved on rows that nothing else has seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from terrazzo.checkpoint import atomic_folder
from terrazzo.checkpoint.atomic import usable
from terrazzo.compression.candidates import Candidate, Log, Workshop, refuse_other_files
from terrazzo.compression.cutting import Cutter
from terrazzo.compression.goal import Goal
from terrazzo.compression.latency import LatencyTable
from terrazzo.compression.means import MEANS
from terrazzo.compression.offers import GoalUnreachable, Offer
from terrazzo.compression.plan import Plan, write_plan
from terrazzo.compression.proof import PROOF, Claim, NotProved, Proof, prove_folder, write_proof
from terrazzo.compression.quantise import BitPlan, Quantised, quantise, requantise
from terrazzo.compression.recover import Effort, recover
from terrazzo.compression.report import REPORT, Sketch, write_report
from terrazzo.compression.rows import Split, read_split
from terrazzo.compression.solver import Unreachable
from terrazzo.compression.speed import PLAIN, Bench, Here, fastest, without_answer
from terrazzo.compression.subject import Subject, batches, open_subject, refuse_guessing
from terrazzo.compression.timing import Times
from terrazzo.config import nearest, to_dict
from terrazzo.errors import InputError
from terrazzo.runtime import Precision
from terrazzo.runtime.building import installed
from terrazzo.runtime.folder import RuntimeName
from terrazzo.tasks.model import TaskModel, load_task_model, model_fingerprint, model_folder
from terrazzo.train.units import duration

PLAN = "plan.json"


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
    out: str | Path = "compressed",
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
    if effort not in MEANS:
        raise InputError(f"effort {effort!r}: {nearest(effort, MEANS)}")
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
        self.means = MEANS[asked.effort]
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
            write_report(self.work.parent, self.goal, None, self.offers, self.sketches, self.asked.out.name)
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
        return Workshop(self.subject, self.bench, self.work, runtime, self.precision, self._detail)

    # propose

    def propose(self) -> LatencyTable:
        """What heads and units cost in the runtime that the model will have."""
        return self.table

    @cached_property
    def table(self) -> LatencyTable:
        self.log(f"propose   what heads and units cost in {self.shop.runtime} {self.precision} on this machine...")
        return self.bench.table(self.shop.runtime, self.precision)

    # choose

    @property
    def target_ms(self) -> float | None:
        """Milliseconds that the goal leaves a batch."""
        if self.goal.under_ms is not None:
            return self.goal.under_ms
        return None if self.goal.faster is None else self.times.ms[self.fp32] / self.goal.faster

    def best_candidate(self) -> Candidate | None:
        """The cheapest rung of the ladder that reaches the goal on the rows to choose by."""
        return self.few_bits() if self.target_ms is None else self.fewer_parts()

    def few_bits(self) -> Candidate | None:
        """A model as small as asked: the bits of every matrix by what they cost, then trained at those bits."""
        assert self.goal.smaller is not None
        budget = int(4 * sum(one.numel() for one in self.subject.model.parameters()) / self.goal.smaller)
        documents = [without_answer(one) for one in self.subject.learn.flat[: self.means.calibration]]
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
        assert self.target_ms is not None
        cutter = Cutter(
            self.subject, self.shop, self.table, whole.offer, self.means, self.work, self.asked.seed, self._detail
        )
        cutter.offers += self.offers
        self.offers, self.sketches = cutter.offers, cutter.sketches
        shot = cutter.one_shot(self.goal, self.times.ms[self.fp32] / self.target_ms)
        if shot is None or not (shot.offer.fast_enough(self.goal) and shot.offer.small_enough(self.goal)):
            return None
        if self._sure(shot.offer):
            return shot
        trained = cutter.trained(shot)
        return trained if trained.offer.meets(self.goal) else None

    # recover

    def rounded(self, few: Candidate, plan: BitPlan) -> Quantised[TaskModel]:
        """The model of few bits after training at these bits."""
        trained = recover(
            self.subject,
            lambda: load_task_model(few.folder).model,
            self.means.recover,
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
            write_report(folder, self.goal, proof, self.offers, self.sketches, self.asked.out.name)
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

    def _advice(self) -> str:
        if self.asked.effort == "minutes":
            return "--effort hours trains longer"
        return ""

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
        self.log(line if line.startswith(("made", "sketched", "choose", "propose", "recover")) else f"          {line}")

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
