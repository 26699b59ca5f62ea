"""Candidates: models that are made, exported and measured, one folder each, so that an interrupted search goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from terrazzo.checkpoint import atomic_folder
from terrazzo.compression.goal import Goal
from terrazzo.compression.offers import Offer
from terrazzo.compression.proof import open_small, size_of
from terrazzo.compression.quantise import Quantised, save_packed
from terrazzo.compression.speed import Bench, fastest
from terrazzo.compression.subject import Subject, drop_of
from terrazzo.config import from_dict, read_file, to_dict
from terrazzo.provenance import write_json_atomic
from terrazzo.runtime import Precision
from terrazzo.runtime.folder import RuntimeName
from terrazzo.runtime.quantise import Target, Unreached
from terrazzo.tasks.calibration import Calibration, calibration_of
from terrazzo.tasks.export import export_into, open_source
from terrazzo.tasks.model import TaskModel, save_task_model
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.training import tokenizer_file

OFFER, MODEL, EXPORTED = "offer.json", "model", "exported"
#: What int8 must keep of a candidate before its accuracy is measured on rows with answers, which decides.
_TARGET = Target(cosine=0.97, answers=0.0)
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A measured model and the folder that it runs from."""

    offer: Offer
    folder: Path


class Workshop:
    """Makes and measures candidates.

    Args:
        folder: where they lie; what is finished there is not made again.
        runtime, precision: that they are exported to; instead: for fp32, where int8 is too far
            from a model.
    """

    def __init__(
        self,
        subject: Subject,
        bench: Bench,
        folder: Path,
        runtime: RuntimeName,
        precision: Precision,
        instead: RuntimeName,
        log: Log,
    ) -> None:
        self.subject, self.bench, self.folder, self.log = subject, bench, folder, log
        self.runtime, self.precision, self.instead = runtime, precision, instead

    def calibration(self) -> Calibration:
        """Rows to learn from that set the ranges of int8."""
        loaded = self.subject.loaded
        return calibration_of(self.subject.learn.examples, loaded.tokenizer, loaded.max_len, self.subject.task)

    def candidate(
        self,
        key: str,
        name: str,
        make: Callable[[], TaskModel],
        sizes: Mapping[str, int] | None = None,
        predicted_ms: float | None = None,
        trained: bool = False,
    ) -> Candidate:
        """The model that `make` gives, on its runtime, with its speed and its drop on the rows to choose by.

        A model that int8 is far from runs in fp32.
        """
        folder = self.folder / key
        if (folder / OFFER).is_file():
            return Candidate(offer=from_dict(Offer, read_file(folder / OFFER), str(folder)), folder=folder / EXPORTED)
        if not (folder / MODEL).is_dir():
            self.save(make(), folder / MODEL)
        shutil.rmtree(folder / EXPORTED, ignore_errors=True)
        try:
            runtime, precision = self._exported(folder, self.runtime, self.precision)
        except Unreached as error:
            self.log(f"no int8: {error}; fp32 instead")
            runtime, precision = self._exported(folder, self.instead, "fp32")
            predicted_ms = None
        named = name.replace(self.precision, precision)
        offer = replace(
            self.measured(folder / EXPORTED, named, runtime, precision, sizes or {}, predicted_ms), trained=trained
        )
        write_json_atomic(folder / OFFER, to_dict(offer))
        self.log(f"made      {offer}")
        return Candidate(offer=offer, folder=folder / EXPORTED)

    def _exported(self, folder: Path, runtime: RuntimeName, precision: Precision) -> tuple[RuntimeName, Precision]:
        """What the model in `folder` was exported to.

        Raises:
            Unreached: int8 that is far from the model in fp32.
        """
        source = open_source(folder / MODEL)
        with atomic_folder(folder / EXPORTED) as out:
            export_into(out, source, self.calibration(), (runtime,), precision, _TARGET, self.log)
        return runtime, precision

    def packed(
        self, key: str, name: str, make: Callable[[], Quantised[TaskModel]], *, trained: bool = False
    ) -> Candidate:
        """The model of few bits that `make` gives, packed on disk; it runs in PyTorch as any other."""
        folder = self.folder / key
        if not (folder / OFFER).is_file():
            quantised, loaded = make(), self.subject.loaded
            with tokenizer_file(loaded.tokenizer) as file:
                save_packed(folder / EXPORTED, quantised, file, max_len=loaded.max_len)
            offer = self.measured(folder / EXPORTED, name, "torch", "fp32", {}, None, quantised.plan.bits)
            offer = replace(offer, trained=trained)
            write_json_atomic(folder / OFFER, to_dict(offer))
            self.log(f"made      {offer}")
        return Candidate(offer=from_dict(Offer, read_file(folder / OFFER), str(folder)), folder=folder / EXPORTED)

    def measured(
        self,
        folder: Path,
        name: str,
        runtime_name: RuntimeName,
        precision: Precision,
        sizes: Mapping[str, int],
        predicted_ms: float | None,
        bits: Mapping[str, int] | None = None,
    ) -> Offer:
        """The figures of a folder that is ready to run."""
        small, runtime = open_small(folder, self.bench)
        rows = self.subject.choose.examples
        said = Predictor(small.model, small.tokenizer, small.max_len, runtime=runtime).predict(rows)
        drop = drop_of(self.subject.task, rows, self.subject.dense_answers, said)
        times = self.bench.beside(runtime)
        size = size_of(folder, self.subject)
        ms = times.ms["small"]
        return Offer(
            name=name,
            runtime=runtime_name,
            precision=precision,
            sizes=dict(sizes),
            bits=dict(bits or {}),
            predicted_ms=predicted_ms,
            ms=ms,
            faster=times.ms[fastest(times)] / ms,
            bytes=size.bytes,
            smaller=size.smaller,
            metric=drop.small,
            drop=drop.points,
            drop_high=drop.most,
        )

    def save(self, model: TaskModel, folder: Path) -> None:
        """A task folder of a model."""
        loaded = self.subject.loaded
        with tokenizer_file(loaded.tokenizer) as file:
            save_task_model(folder, model, file, max_len=loaded.max_len)


def surest(goal: Goal, made: Sequence[Candidate], share: float, spare: float = 0.0) -> Candidate | None:
    """Of the candidates that reach a goal the one that most likely is proved: of the least upper end of its drop.

    One that learned back is taken unless another is better by more than chance, to which the best of several cuts owes
    some of its figure.

    Args:
        share: rows to choose by for each row to prove by, by whose root the interval is going to shrink.
        spare: the share of the speed that may be missing.
    """

    def most(one: Candidate) -> float:
        return one.offer.drop + (one.offer.drop_high - one.offer.drop) * math.sqrt(share)

    reaching = [one for one in made if one.offer.meets(goal, spare)]
    best = min(reaching, key=most, default=None)
    taught = min((one for one in reaching if one.offer.trained), key=most, default=best)
    return best if best is None or taught is None or taught.offer.drop > best.offer.drop_high else taught
