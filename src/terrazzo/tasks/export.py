"""A model folder made ready for this machine: the graph of its fastest runtime, checked against fp32, in one folder."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from tokenizers import Tokenizer

from terrazzo.checkpoint import atomic_folder, load_model, load_tokenizer
from terrazzo.checkpoint.atomic import RECORD as MODEL_RECORD
from terrazzo.checkpoint.atomic import standing, usable
from terrazzo.checkpoint.folder import FORMAT
from terrazzo.checkpoint.tokenizer import TOKENIZER
from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.runtime.agreement import Answers, Judge
from terrazzo.runtime.building import RUNTIMES, Builder, installed
from terrazzo.runtime.choice import Chosen, choose, made_up_documents
from terrazzo.runtime.contract import Precision, Runtime, TorchRuntime
from terrazzo.runtime.folder import RECORD as RUNTIME_RECORD
from terrazzo.runtime.folder import (
    RuntimeName,
    RuntimeRecord,
    is_exported,
    model_files,
    read_record,
    read_values,
    write_record,
)
from terrazzo.runtime.quantise import LEAST_TEXTS, Target
from terrazzo.tasks.calibration import Calibration, alike, made_up, read_calibration
from terrazzo.tasks.exported import Exported
from terrazzo.tasks.model import LoadedTask, is_task_folder, load_task_model, model_folder, write_task_model
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.task import Result

Asked = Literal["auto", "torch", "openvino", "onnx"]
#: Takes a line for a person.
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model folder, open."""

    folder: Path
    network: MaskedLM | Encoder
    tokenizer: Tokenizer
    task: LoadedTask | None

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder if isinstance(self.network, MaskedLM) else self.network

    @property
    def max_len(self) -> int:
        return self.encoder.config.max_len if self.task is None else self.task.max_len


def export(
    source: str | Path,
    out: str | Path,
    runtime: str = "auto",
    precision: str = "fp32",
    calibration: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    target: Target | None = None,
    log: Log | None = None,
    progress: Log | None = None,
) -> Exported:
    """Write `out`: the model in `source` with the graph of its fastest runtime, or of the named one.

    Every candidate is measured on this machine, unless it was for a model of the same shape. What the graph computes is
    compared with PyTorch in fp32, on texts of `calibration` that were not used for anything else.

    Args:
        source: any model folder: what pretrain or finetune wrote, a task folder, a published checkpoint.
        calibration: texts, or the task's rows, one a line; int8 needs them.
        fields: the column of a field in `calibration`, where its name does not tell.
        target: agreement that int8 must reach; None is a mean cosine of 0.995 and 99 % of a task's answers, or all but
            one of fewer than a hundred.
        log: takes lines about what was made; progress: about what is done now. None says nothing.

    Raises:
        InputError: a model, a runtime with a precision, or texts that cannot be used; a missing package; int8 that does
            not reach its target.
    """
    began, log, progress = time.perf_counter(), log or _silent, progress or _silent
    asked, exact = _checked(runtime, precision, calibration)
    opened, out = open_source(source), Path(out)
    with usable(out):
        _refuse(out, opened.folder)
    texts = _texts(opened, calibration, fields)
    names = _candidates(asked, exact)
    load = os.getloadavg()[0]
    with atomic_folder(out) as folder:
        record, chosen = export_into(folder, opened, texts, names, exact, target, log, progress)
    exported = Exported(
        folder=out,
        record=record,
        left_out=chosen.choice.left_out,
        remembered=chosen.remembered,
        load=load if load > (os.cpu_count() or 1) else None,
        seconds=time.perf_counter() - began,
    )
    for line in exported.lines(made_up=calibration is None):
        log(line)
    return exported


def export_into(
    folder: Path,
    opened: Source,
    texts: Calibration,
    names: Sequence[RuntimeName],
    precision: Precision,
    target: Target | None = None,
    log: Log | None = None,
    progress: Log | None = None,
) -> tuple[RuntimeRecord, Chosen]:
    """Fill an empty folder with a model and the graph of the fastest of some runtimes; see `export`.

    Raises:
        InputError: damaged weights, or int8 that does not reach its target.
    """
    log, progress = log or _silent, progress or _silent
    _refuse_damaged(opened)
    _copy_model(opened, folder)
    judge = Judge(TorchRuntime(opened.encoder), texts.judge_batches, _answers(opened, texts), alike)
    builder = Builder(
        encoder=opened.encoder,
        precision=precision,
        folder=folder / ".building",
        setting=texts.set_batches,
        judge=judge,
        target=target or Target(),
        log=log,
        progress=progress,
    )
    chosen = choose(builder.openers(names), opened.encoder.config, precision, progress=progress)
    built = builder.build(chosen.choice.runtime)
    agreement = built.agreement
    if agreement is None:
        progress(f"comparing with fp32 ({len(texts.judging):,} texts)...")
        agreement = judge(built.open(None))
    if not math.isfinite(agreement.mean):
        raise InputError(
            f"{opened.folder}: its vectors are not finite in fp32 or in {precision}, so its weights are damaged"
        )
    builder.keep(built, folder)
    record = write_record(
        folder,
        runtime=built.runtime,
        precision=precision,
        max_len=opened.max_len,
        batch_tokens=chosen.choice.batch_tokens,
        streams=chosen.choice.streams,
        rates=chosen.choice.rates,
        agreement=agreement,
        reverted=built.reverted,
        half_range=built.half_range,
    )
    return record, chosen


def _silent(line: str) -> None:
    pass


def open_source(path: str | Path) -> Source:
    """A model folder with its tokenizer, and the head of its task where it has one.

    Raises:
        InputError: not a model folder, or a damaged one.
    """
    folder = standing(model_folder(path))
    if is_exported(folder):
        read_record(folder, run="torch")
    if is_task_folder(folder):
        loaded = load_task_model(folder)
        loaded.model.eval()
        return Source(folder=folder, network=loaded.model.encoder, tokenizer=loaded.tokenizer, task=loaded)
    network = load_model(folder).eval()
    return Source(folder=folder, network=network, tokenizer=load_tokenizer(folder, network.config), task=None)


def _checked(runtime: str, precision: str, calibration: str | Path | None) -> tuple[Asked, Precision]:
    if runtime not in get_args(Asked):
        raise InputError(f"--runtime {runtime}: {nearest(runtime, get_args(Asked))}")
    if precision not in get_args(Precision):
        raise InputError(f"--precision {precision}: {nearest(precision, get_args(Precision))}")
    having = RUNTIMES[cast(Precision, precision)]
    if runtime != "auto" and runtime not in having:
        raise InputError(f"--runtime {runtime} has no {precision}: take {' or '.join(having)}, or leave it out")
    if precision == "int8" and calibration is None:
        raise InputError(
            "--precision int8 needs texts to set its ranges: --calibrate texts.jsonl, "
            f"at least {LEAST_TEXTS} rows like those to come"
        )
    return cast(Asked, runtime), cast(Precision, precision)


def _refuse(out: Path, source: Path) -> None:
    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: is the model itself; name another folder")
    if (out / MODEL_RECORD).is_file() and not is_exported(out):
        raise InputError(f"--out {out}: holds a model that was not exported and would be replaced; name another folder")
    if foreign := _foreign(out):
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise InputError(
            f"--out {out}: would be replaced as a whole, with files in it that no export wrote ({named}): move them "
            "elsewhere, or name another folder"
        )


def _foreign(out: Path) -> list[str]:
    """What lies in an exported folder and is not of the export; all of it where runtime.json cannot be read."""
    if not (out / RUNTIME_RECORD).is_file():
        return []
    try:
        files = read_values(out / RUNTIME_RECORD).get("files")
    except InputError:
        files = None
    known = {*files, RUNTIME_RECORD} if isinstance(files, dict) else {RUNTIME_RECORD}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    return sorted(found - known)


def _refuse_damaged(source: Source) -> None:
    module = source.network if source.task is None else source.task.model
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(
                f"{source.folder}: {name} holds numbers that are not finite, so its weights are damaged: copy the "
                "folder again, or take an earlier checkpoint"
            )


def _candidates(runtime: Asked, precision: Precision) -> tuple[RuntimeName, ...]:
    """The runtimes to try: the one asked for, or all whose packages are installed."""
    if runtime != "auto":
        return (runtime,)
    found = tuple(name for name in RUNTIMES[precision] if installed(name, precision))
    if not found:
        raise InputError(f"no runtime for {precision} is installed: pip install 'terrazzo[serve,export]'")
    return found


def _texts(source: Source, calibration: str | Path | None, fields: Mapping[str, str] | None) -> Calibration:
    if calibration is None:
        return made_up(made_up_documents(source.encoder.config))
    task = None if source.task is None else source.task.model.task
    return read_calibration(calibration, source.tokenizer, source.max_len, task, fields)


def _answers(source: Source, texts: Calibration) -> Answers | None:
    task = source.task
    if task is None or not texts.rows:
        return None

    def answers(runtime: Runtime) -> list[Result]:
        return Predictor(task.model, task.tokenizer, task.max_len, runtime=runtime).predict(texts.rows)

    return answers


def _copy_model(source: Source, folder: Path) -> None:
    """The model's files; adapters that the folder keeps apart are merged, because graphs have none."""
    task = source.task
    if task is not None and task.adapter is not None:
        write_task_model(folder, task.model, source.folder / TOKENIZER, max_len=task.max_len)
        return
    for file in model_files(source.folder):
        shutil.copyfile(file, folder / file.name)
    if not (folder / MODEL_RECORD).is_file():  # published checkpoints have none, and it marks a folder as ours
        write_json_atomic(folder / MODEL_RECORD, {"format": FORMAT, **provenance()})
