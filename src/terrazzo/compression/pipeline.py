"""The one command: measure, propose, choose, apply, recover, and prove.

A ladder of means, the cheapest first: int8; heads and units cut to a time by ZipLM, one-shot; the same, distilled. The
first that reaches the goal on the rows to choose by is proved on rows that nothing else has seen.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from terrazzo.checkpoint import atomic_folder
from terrazzo.compression.asked import Asked, Compressed, asked_for
from terrazzo.compression.candidates import Candidate, Log, Workshop, surest
from terrazzo.compression.cutting import Cutter
from terrazzo.compression.few_bits import Packer, budget_of, least_bytes
from terrazzo.compression.goal import Goal
from terrazzo.compression.ground import Ground, Start
from terrazzo.compression.latency import LatencyTable
from terrazzo.compression.means import MEANS
from terrazzo.compression.offers import GoalUnreachable, Offer, Sketch
from terrazzo.compression.plan import Plan, write_plan
from terrazzo.compression.proof import PROOF, Claim, NotProved, prove_folder, resolved, write_proof
from terrazzo.compression.report import write_frontier, write_report
from terrazzo.compression.speed import PLAIN, Here, fastest
from terrazzo.compression.subject import refuse_guessing
from terrazzo.compression.timing import Times
from terrazzo.compression.workplace import PLAN, Workplace, depends_of, unproved_out
from terrazzo.runtime import Precision
from terrazzo.runtime.building import installed
from terrazzo.runtime.folder import RuntimeName
from terrazzo.train.units import duration

#: The share by which the speed of one shape differs between two measurements.
_NOISE = 0.03
#: How much longer than a one-sided interval of 95 % one of 99.5 % is.
_SURE = 2.576 / 1.645


def compress(
    model: str | Path,
    data: str | Path,
    goal: Goal,
    out: str | Path = "compressed",
    *,
    held_out: str | Path | None = None,
    texts: str | Path | None = None,
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
        texts: rows without answers, like those to come, to learn back from the dense model by.
        on: threads and batch that speed is meant for; None is one thread and about 1,024 tokens.
        effort: "minutes" or "hours": how long is searched and trained.
        dry_run: say what would be done and how far it is from the goal, and make nothing.
        log: takes lines for a person.

    Returns:
        None for a dry run.

    Raises:
        InputError: a model, rows or a goal that cannot be used; too few rows to prove the drop.
        GoalUnreachable: nothing that was made reaches the goal; carries what was measured.
        NotProved: the model is in `out`, or beside it where `out` holds a proved one, and its proof does not show the
            goal, or was withheld on a noisy machine.
        TooNoisy: the machine does too much else for a plan to be made.
    """
    asked = asked_for(model, data, goal, out, held_out, on, effort, fields, seed, texts)
    return Compression(asked, log or (lambda line: None), Ground(asked)).run(dry_run)


class Compression:
    """One run of the five verbs.

    Args:
        ground: the model, its rows and its bench, opened for `asked` or for another compression of the same.
        start: a cut model that cuts start from; None is the dense one.
    """

    def __init__(self, asked: Asked, log: Log, ground: Ground, start: Start | None = None) -> None:
        self.asked, self.goal, self.log, self.began = asked, asked.goal, log, time.perf_counter()
        self.means, self.ground, self.start = MEANS[asked.effort], ground, start
        self.split, self.subject, self.bench = ground.split, ground.subject, ground.bench
        rows, machine = self.split.whole_fingerprint, self.bench.machine.key
        begun = None if start is None else start.fingerprint
        self.place = Workplace(asked.out, depends_of(asked, ground.fingerprint, rows, self.means, machine, begun))
        self.offers: list[Offer] = []
        self.sketches: list[Sketch] = []

    def run(self, dry_run: bool, briefly: bool = False) -> Compressed | None:
        """Everything, or, dry, everything that only measures; briefly, without what was said of the dense model."""
        self._say_rows()
        if dry_run:
            if not briefly:
                self.measure()
            self._say_dry()
            return None
        with self.place.held():
            self.measure()
            self.place.keep_times(self.times)
            chosen = self.best_candidate()
            if chosen is None:
                page = write_report(self.place.root, self.goal, None, self.offers, self.sketches, self.place.out.name)
                self.log(f"report    {page}")
                raise GoalUnreachable(self.goal, self.offers, self._advice())
            return self.finish(chosen)

    # measure

    def measure(self) -> None:
        """The dense model: its metric on the rows to choose by, its milliseconds everywhere."""
        rows = self.subject.choose.examples
        refuse_guessing(self.subject.task, rows, self.subject.dense_answers, self.split.judging)
        scores = self.subject.task.score(rows, self.subject.dense_answers)
        times, name = self.times, self.fp32
        self.log(
            f"measure   {scores.main} {100 * scores.value:.2f}; {times.ms[name]:.2f} ms a batch of "
            f"{len(self.bench.lengths)} texts, {sum(self.bench.lengths):,} tokens, in the fastest fp32 runtime "
            f"({name}), {times.ms[PLAIN]:.2f} ms in plain PyTorch"
        )
        if self.precision != "int8" and self.goal.asks_speed:
            lacking = (
                "pip install 'terrazzo[serve,export]' brings it"
                if self.bench.machine.has_int8
                else "this CPU has no products of 8 bits"
            )
            self.log(f"          no int8 here ({lacking}): fp32 alone")

    @cached_property
    def times(self) -> Times:
        """Of the dense model everywhere."""
        return self.place.times() or self.ground.times

    @property
    def fp32(self) -> RuntimeName:
        return fastest(self.times)

    @cached_property
    def precision(self) -> Precision:
        """int8 where this CPU has its products, the packages are there and the model bears it, else fp32."""
        return "int8" if self.bench.machine.has_int8 and installed("openvino", "int8") else "fp32"

    @cached_property
    def shop(self) -> Workshop:
        runtime: RuntimeName = "openvino" if self.precision == "int8" else self.fp32
        folder = self.place.folder
        return Workshop(self.subject, self.bench, folder, runtime, self.precision, self.fp32, self._detail)

    # propose

    @cached_property
    def table(self) -> LatencyTable:
        self.log(f"propose   what heads and units cost in {self.shop.runtime} {self.precision} on this machine...")
        name = f"{self.shop.runtime}-{self.precision}"
        table = self.place.table(name) or self.bench.table(self.shop.runtime, self.precision)
        self.place.keep_table(name, table)
        return table

    # choose

    @property
    def target_ms(self) -> float | None:
        """Milliseconds that the goal leaves a batch."""
        if self.goal.under_ms is not None:
            return self.goal.under_ms
        return None if self.goal.faster is None else self.times.ms[self.fp32] / self.goal.faster

    @property
    def factor(self) -> float:
        """How many times as fast as the fastest fp32 runtime that is."""
        if self.goal.under_ms is not None:
            return self.times.ms[self.fp32] / self.goal.under_ms
        assert self.goal.faster is not None
        return self.goal.faster

    def best_candidate(self) -> Candidate | None:
        """The cheapest rung of the ladder that reaches the goal on the rows to choose by."""
        return self.fewer_parts() if self.goal.asks_speed else self.few_bits()

    def few_bits(self) -> Candidate | None:
        """A model as small as asked: few bits, then trained at them."""
        assert self.goal.smaller is not None
        folder, seed = self.place.folder, self.asked.seed
        packer = Packer(self.subject, self.shop, self.goal.smaller, self.means, folder, seed, self._detail)
        few = self.offer(packer.one_shot())
        if self._sure(few.offer) or not few.offer.small_enough(self.goal):
            return self._best(few)
        return self._best(few, self.offer(packer.trained(few)))

    def fewer_parts(self) -> Candidate | None:
        """A model as fast as asked: int8, then heads and units cut, then trained."""
        whole = self.offer(self.shop.candidate("whole", self.precision, lambda: self.subject.model))
        if whole.offer.precision != self.precision:
            self.precision = whole.offer.precision
            del self.shop
        if self._enough(whole.offer) and self._sure(whole.offer):
            return whole
        folder, seed = self.place.folder, self.asked.seed
        cutter = Cutter(
            self.subject, self.shop, self.table, whole.offer, self.means, folder, seed, self._detail, self.start
        )
        cutter.offers += self.offers
        self.offers, self.sketches = cutter.offers, cutter.sketches
        shot = cutter.one_shot(self.goal, self.factor)
        if shot is None or not self._enough(shot.offer):
            return self._best(whole)
        if self._sure(shot.offer):
            return shot
        return self._best(whole, shot, cutter.trained(shot))

    def _best(self, *made: Candidate) -> Candidate | None:
        """The surest of them; how little a speed misses is for the proof to say, which measures it anew."""
        return surest(self.goal, made, len(self.split.choose) / len(self.split.proof), _NOISE)

    def _enough(self, offer: Offer) -> bool:
        """Whether it is as fast and as small as asked."""
        return offer.fast_enough(self.goal) and offer.small_enough(self.goal)

    # prove

    def finish(self, chosen: Candidate) -> Compressed:
        """Prove the candidate, write the folder, and take away the work.

        Raises:
            NotProved: after the folder is written, where the proof does not show the goal.
        """
        asked, offer = self.asked, chosen.offer
        self.log(f"prove     {offer.name}, on {len(self.subject.proof.examples):,} rows that nothing else has seen...")
        claim = Claim(
            goal=self.goal,
            on=asked.on,
            model=str(Path(asked.model).resolve()),
            model_fingerprint=self.ground.fingerprint,
            data=resolved(asked.data),
            held_out=None if asked.held_out is None else resolved(asked.held_out),
            seed=asked.seed,
            fields=asked.fields or {},
        )
        proof = prove_folder(chosen.folder, self.subject, self.bench, claim, offer.predicted_ms)
        self.offers.sort(key=lambda one: one is offer)
        out = asked.out if proof.proved else unproved_out(asked.out)
        with atomic_folder(out) as folder:
            shutil.copytree(chosen.folder, folder, dirs_exist_ok=True)
            write_plan(folder / PLAN, self._plan_of(offer))
            write_proof(folder, proof)
            write_frontier(folder, self.offers, self.sketches)
            write_report(folder, self.goal, proof, self.offers, self.sketches, out.name)
        self.place.remove()
        for line in proof.lines():
            self.log(f"          {line}")
        seconds = time.perf_counter() - self.began
        self.log(f"wrote     {out} in {duration(seconds)}; next: terrazzo serve {out}")
        if not proof.proved:
            kept = "" if out == asked.out else f" ({asked.out} stays as it was: its proof holds)"
            raise NotProved(f"{out} is written, but its proof does not show the goal: {'; '.join(proof.why)}{kept}")
        return Compressed(folder=out, proof=proof, offers=tuple(self.offers), seconds=seconds)

    # the frontier

    def offer(self, candidate: Candidate) -> Candidate:
        """Remember what was made."""
        self.offers.append(candidate.offer)
        return candidate

    # what a person reads

    def _say_rows(self) -> None:
        task, split = self.subject.task, self.split
        origin = "" if split.same_file else " held out"
        more = f", {len(split.texts):,} more without answers" if split.texts else ""
        self.log(
            f"rows      {task.kind}: {len(split.learn):,} to learn from, {len(split.choose):,} to choose by and "
            f"{len(split.proof):,} to prove by{origin}{more}; goal: {self.goal}"
        )

    def _say_dry(self) -> None:
        if self.target_ms is None:
            assert self.goal.smaller is not None
            asked, least = budget_of(self.subject, self.goal.smaller), least_bytes(self.subject)
            said = "within reach" if asked >= least else "out of reach"
            self.log(
                f"dry run   {asked / 1e6:.1f} MB are asked; fewest bits everywhere take {least / 1e6:.1f} MB: {said}; "
                "nothing was made"
            )
            return
        asked_ms, dense_ms, least_ms = self.target_ms, self.table.dense_ms, self.table.remainder_ms
        share = (asked_ms - least_ms) / (dense_ms - least_ms)
        said = "out of reach" if share < 0 else f"about {share:.0%} of them can stay" if share < 1 else "all can stay"
        self.log(
            f"dry run   {asked_ms:.2f} ms are asked; {self.shop.runtime} {self.precision} takes about "
            f"{dense_ms:.2f} ms uncut and {least_ms:.2f} ms without any heads and units: {said}; nothing was made"
        )

    def _advice(self) -> str:
        lost = any(self._enough(offer) for offer in self.offers)
        return "--effort hours trains longer" if lost and self.asked.effort == "minutes" else ""

    def _sure(self, offer: Offer) -> bool:
        """Whether training is not needed: the drop is below the goal even at the end of a wide interval, because the
        first of several models that looks good is the one that is taken."""
        return offer.drop + _SURE * (offer.drop_high - offer.drop) <= self.goal.drop

    def _plan_of(self, offer: Offer) -> Plan:
        return Plan(
            sizes=offer.sizes,
            bits=offer.bits,
            runtime=offer.runtime,
            precision=offer.precision,
            target=self.goal,
            predicted_ms=offer.predicted_ms or offer.ms,
            trained=offer.trained,
            effort=self.asked.effort,
            texts=len(self.split.texts),
            lengths=self.bench.lengths,
            threads=self.asked.on.threads,
            seed=self.asked.seed,
            machine=self.bench.machine.key,
        )

    def _detail(self, line: str) -> None:
        self.log(line if line.startswith(("made", "sketched", "choose", "propose", "recover")) else f"          {line}")


__all__ = ["PLAN", "PROOF", "Asked", "Compressed", "Compression", "Workshop", "compress"]
