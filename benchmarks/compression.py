"""Compression to a goal: all-MiniLM-L6-v2 fine-tuned on SST-2 (20,000 rows), CLINC150 and STS-B, each with its proof.

python -m benchmarks.compression --data-root DATASETS --work WORK            # what WORK holds is not made again
python -m benchmarks.compression --data-root DATASETS --work WORK --only sst2-4x
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.result import RESULTS, Row, write
from recipes.compressing import DENSE, dense_model, write_jsonl
from recipes.runner import data_root
from terrazzo.compression.family import compress_family
from terrazzo.compression.goal import Goal
from terrazzo.compression.latency_measure import compare
from terrazzo.compression.offers import GoalUnreachable
from terrazzo.compression.pipeline import compress
from terrazzo.compression.plan import read_plan
from terrazzo.compression.proof import NotProved, Proof, prove, read_proof
from terrazzo.compression.rows import read_split
from terrazzo.compression.speed import Bench, Here
from terrazzo.compression.subject import Subject, open_subject
from terrazzo.config import read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.provenance import write_json_atomic
from terrazzo.tasks.forward import answer
from terrazzo.tasks.rows import read_examples

#: Speeds that one call makes of SST-2's model, and the points that each may lose.
FAMILY, FAMILY_DROP = (4, 6, 12), 7.5
#: Random plans whose predicted time is compared with the measured one.
PLANS = 10


@dataclass(frozen=True, kw_only=True)
class Order:
    """One sentence: a task, a goal, an effort.

    Args:
        texts: whether it learns back by SST-2's other training rows, too, without their answers.
    """

    task: str
    goal: Goal
    effort: str = "minutes"
    texts: bool = False


ORDERS: Mapping[str, Order] = {
    "sst2-4x": Order(task="sst2", goal=Goal(faster=4, drop=1.0)),
    "clinc150-4x": Order(task="clinc150", goal=Goal(faster=4, drop=1.0)),
    "stsb-4x": Order(task="stsb", goal=Goal(faster=4, drop=1.0)),
    "sst2-small8": Order(task="sst2", goal=Goal(smaller=8, drop=1.0)),
    "sst2-6x": Order(task="sst2", goal=Goal(faster=6, drop=2.0)),
    "sst2-8x": Order(task="sst2", goal=Goal(faster=8, drop=1.0), effort="hours", texts=True),
    "sst2-12x": Order(task="sst2", goal=Goal(faster=12, drop=7.5)),
    "sst2-small13": Order(task="sst2", goal=Goal(smaller=13, drop=1.0), effort="hours"),
}


def fill(name: str, root: Path, work: Path) -> dict[str, Any]:
    """What an order came to: made once, its proof measured again by `prove`."""
    order, record = ORDERS[name], work / f"{name}.json"
    if record.is_file():
        return dict(read_file(record))
    model, data, held = _subject(order.task, root, work)
    texts = write_texts(root, work / order.task / "texts.jsonl") if order.texts else None
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        print(f"  {name}: {line}", flush=True)

    began, spent, out = time.perf_counter(), time.process_time(), work / "out" / name
    found: dict[str, Any] = {"goal": to_dict(order.goal), "effort": order.effort, "lines": lines}
    try:
        made = compress(model, data, order.goal, out, held_out=held, texts=texts, effort=order.effort, log=log)
        found["offers"] = to_dict(made.offers if made is not None else ())
    except GoalUnreachable as error:
        found["unreachable"] = str(error).splitlines()[0]
        found["offers"] = to_dict(error.offers)
    except NotProved as error:
        found["not_proved"] = str(error).removeprefix(str(out))
    found["seconds"] = round(time.perf_counter() - began, 1)
    found["cpu_seconds"] = round(time.process_time() - spent, 1)
    write_json_atomic(record, found)
    return found


def write_texts(root: Path, file: Path) -> Path:
    """All training rows of SST-2 without their answers; the command leaves out those that it has otherwise."""
    rows = read_examples(root / "glue/SST-2/train.tsv", "label", {"text": "sentence"})
    return write_jsonl([replace(row, target=None) for row in rows], file)


def _subject(task: str, root: Path, work: Path) -> tuple[Path, Path, Path]:
    """The dense model of a task, its rows to learn from, and those held out."""
    rows, folder = DENSE[task].read(root), work / task
    data = write_jsonl(rows.train, folder / "train.jsonl")
    held = write_jsonl([*rows.dev, *rows.proof], folder / "held.jsonl")
    return dense_model(task, rows, work, print), data, held


def table_errors(root: Path, work: Path) -> dict[str, Any]:
    """How far predicted speed-ups over the dense int8 model are off: of random plans and of those chosen on SST-2."""
    source = open_subject(dense_model("sst2", DENSE["sst2"].read(root), work, print))
    assert source.task is not None
    split = read_split(source.task.model.task, work / "sst2/train.jsonl", work / "sst2/held.jsonl", 1.0, 0)
    subject = Subject(source, split)
    bench = Bench(subject, Here())
    table = bench.table("openvino", "int8")
    plans = {f"random {seed}": random_config(table.shape, seed) for seed in range(PLANS)}
    for name, order in ORDERS.items():
        file = work / "out" / name / "plan.json"
        if order.task == "sst2" and file.is_file() and (sizes := read_plan(file).sizes):
            plans[name] = sized_config(table.shape, sizes)
    dense, *found = compare(table, [table.shape, *plans.values()], forward=answer(subject.model))
    predicted = [dense.predicted_ms / one.predicted_ms for one in found]
    measured = [dense.measured_ms / one.measured_ms for one in found]
    errors = [p / m - 1 for p, m in zip(predicted, measured, strict=True)]
    named = zip(plans, predicted, measured, errors, strict=True)
    return {name: {"predicted": p, "measured": m, "error": e} for name, p, m, e in named}


def sized_config(shape: EncoderConfig, sizes: Mapping[str, int]) -> EncoderConfig:
    """The shape with so many heads and units in each layer, whichever they are."""
    heads = tuple(tuple(range(sizes.get(f"heads.{layer}", shape.num_heads))) for layer in range(shape.depth))
    widths = tuple(sizes.get(f"units.{layer}", shape.mlp_width) for layer in range(shape.depth))
    return shape.replace(kept_heads=heads, mlp_widths=widths)


def random_config(shape: EncoderConfig, seed: int) -> EncoderConfig:
    """A plan drawn evenly: some heads and a multiple of 32 units in every layer."""
    draw = random.Random(seed)
    heads = tuple(tuple(range(draw.randint(0, shape.num_heads))) for _ in range(shape.depth))
    widths = tuple(32 * draw.randint(0, shape.mlp_width // 32) for _ in range(shape.depth))
    return shape.replace(kept_heads=heads, mlp_widths=widths)


def proofs(work: Path) -> dict[str, Proof]:
    """The proofs of all orders that came to one."""
    found = {name: work / "out" / name for name in ORDERS}
    return {name: read_proof(folder) for name, folder in found.items() if (folder / "proof.json").is_file()}


def best(found: Mapping[str, Proof], kind: str, drop: float, task: str = "sst2") -> tuple[float, str] | None:
    """The highest factor that a proof of at most `drop` points shows, and the order it is of."""
    values = []
    for name, proof in found.items():
        if ORDERS[name].task != task or proof.quality.drop_most > drop or not name.startswith(task):
            continue
        if kind == "smaller":
            values.append((proof.size.smaller, name))
        elif proof.speeds is not None:
            values.append((proof.speeds.faster if kind == "faster" else proof.speeds.faster_plain, name))
    return max(values, default=None)


def rows_of(
    found: Mapping[str, Proof], records: Mapping[str, dict[str, Any]], table: dict[str, Any] | None
) -> list[Row]:
    """The table's lines."""
    asked = [
        ("K1", "faster, at most 1 point lost, SST-2", "the fastest fp32 runtime", "faster", 1.0, "sst2", 4.0, 8.0),
        ("K2", "faster, at most 2 points lost, SST-2", "plain PyTorch fp32", "plain", 2.0, "sst2", 8.0, 15.0),
        ("K3", "faster, at most 7.5 points lost, SST-2", "plain PyTorch fp32", "plain", 7.5, "sst2", 20.0, 30.0),
        (
            "K4",
            "faster, at most 1 point lost, CLINC150",
            "the fastest fp32 runtime",
            "faster",
            1.0,
            "clinc150",
            4.0,
            None,
        ),
        ("K5", "faster, at most 1 point lost, STS-B", "the fastest fp32 runtime", "faster", 1.0, "stsb", 4.0, None),
        ("K6", "smaller file, at most 1 point lost, SST-2", "fp32", "smaller", 1.0, "sst2", 8.0, 13.0),
    ]
    rows = [
        _row(id_, f"MiniLM-L6 compressed: {what}", peer, floor, goal, best(found, kind, drop, task), found)
        for id_, what, peer, kind, drop, task, floor, goal in asked
    ]
    if table is not None:
        rows += _table_rows([abs(one["error"]) for one in table.values()])
    seconds = {
        name: record["cpu_seconds"]
        for name, record in records.items()
        if ORDERS[name].effort == "minutes" and "cpu_seconds" in record
    }
    if seconds:
        note = f"CPU time on one core, training included, because other work may run beside it; of {', '.join(seconds)}"
        rows.append(
            Row(
                id="K8",
                metric=f"a whole run with --effort minutes, the longest of {len(seconds)}",
                peer="",
                floor=600.0,
                goal=180.0,
                value=max(seconds.values()),
                unit="s",
                better="lower",
                note=note,
            )
        )
    return rows


def _table_rows(errors: Sequence[float]) -> list[Row]:
    """How far predicted speed-ups are off: the middle one, and the worst."""
    note = f"{PLANS} random plans and {len(errors) - PLANS} that orders chose, OpenVINO int8, over the uncut model"
    return [
        Row(
            id=id_,
            metric=f"predicted against measured speed-up, {what} error",
            peer="the model as a whole",
            floor=floor,
            goal=goal,
            value=100 * value,
            unit="%",
            better="lower",
            note=note,
        )
        for id_, what, value, floor, goal in (
            ("K7", "median", median(errors), 5.0, 3.0),
            ("K9", "largest", max(errors), 12.0, 8.0),
        )
    ]


def family(root: Path, work: Path) -> dict[str, Any]:
    """What `compress --faster 4,6,12` comes to on SST-2, each speed started from the slower one; made once."""
    record = work / "sst2-family.json"
    if record.is_file():
        return dict(read_file(record))
    model, data, held = _subject("sst2", root, work)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        print(f"  family: {line}", flush=True)

    spent, out = time.process_time(), work / "out" / "sst2-family"
    made = compress_family(model, data, FAMILY, out, drop=FAMILY_DROP, held_out=held, log=log)
    assert made is not None
    found = {
        "factors": FAMILY,
        "drop": FAMILY_DROP,
        "proofs": {name: _plain(proof) for name, proof in made.proofs.items()},
        "missed": dict(made.missed),
        "cpu_seconds": round(time.process_time() - spent, 1),
        "lines": lines,
    }
    write_json_atomic(record, found)
    return found


def _family_row(made: Mapping[str, Any], alone: Proof | None) -> list[Row]:
    last = made["proofs"].get(f"{FAMILY[-1]:g}x")
    if last is None or alone is None:
        return []
    note = (
        f"at most {last['quality']['drop_most']:.2f} with 95 % confidence; {last['speeds']['faster']:.2f}x as fast; "
        f"alone {alone.quality.drop:.2f} at {alone.speeds.faster if alone.speeds else 0:.2f}x; one call made "
        f"{', '.join(f'{factor:g}x' for factor in made['factors'])} in {made['cpu_seconds']:.0f} CPU-seconds"
    )
    metric = f"points lost at {FAMILY[-1]:g}x as the last of a family, SST-2"
    value, peer = last["quality"]["drop"], "the same speed made alone"
    return [
        Row(
            id="K10",
            metric=metric,
            peer=peer,
            floor=FAMILY_DROP,
            goal=None,
            value=value,
            unit="points",
            better="lower",
            note=note,
        )
    ]


def _plain(proof: Proof) -> dict[str, Any]:
    """A proof without the names of folders of this machine."""
    return {**to_dict(proof), "model": "", "data": "", "held_out": ""}


def without(value: Any, folder: str) -> Any:
    """Plain data without the name of a folder of this machine."""
    if isinstance(value, Mapping):
        return {key: without(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without(item, folder) for item in value]
    return value.replace(folder, "WORK") if isinstance(value, str) else value


def _row(
    id_: str,
    metric: str,
    peer: str,
    floor: float,
    goal: float | None,
    value: tuple[float, str] | None,
    found: Mapping[str, Proof],
) -> Row:
    note = "the drop is the upper end of a one-sided 95 % interval on rows that nothing else saw"
    if value is None:
        status = "not run (no proof: see orders)"
        return Row(id=id_, metric=metric, peer=peer, floor=floor, goal=goal, status=status, note=note)
    factor, name = value
    note += f"; of {name}" if found[name].proved else f"; of {name}, which missed what it was asked when proved again"
    return Row(id=id_, metric=metric, peer=peer, floor=floor, goal=goal, value=factor, status="measured", note=note)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the orders that are not yet and write results/compression.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/compression"))
    parser.add_argument("--only", nargs="+", choices=ORDERS, help="fill these orders and write no results")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--prove", action="store_true", help="measure every proof again, and publish that")
    parser.add_argument("--family", action="store_true", help="several speeds of SST-2's model in one call, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = data_root(options.data_root)
    if root is None:
        raise InputError("give --data-root, or set TERRAZZO_DATA, to the folder that holds glue and clinc150")
    records = {name: fill(name, root, options.work) for name in options.only or options.orders}
    if options.only:
        return
    found = proofs(options.work)
    verified = {name: prove(options.work / "out" / name) for name in found} if options.prove else {}
    again = {name: list(one.differing) for name, one in verified.items()}
    found |= {name: one.now for name, one in verified.items()}
    table = table_errors(root, options.work)
    details = {
        "orders": without(records, str(options.work)),
        "proofs": {name: _plain(proof) for name, proof in found.items()},
        "differing_when_proved_again": again,
        "table": table,
    }
    rows = rows_of(found, records, table)
    if options.family:
        details["family"] = without(family(root, options.work), str(options.work))
        rows += _family_row(details["family"], found.get("sst2-12x"))
    write("compression", rows, details, options.out)


if __name__ == "__main__":
    main()
