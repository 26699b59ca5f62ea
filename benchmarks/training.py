"""Training steps beside transformers on real text: speed with and without padding to save, share of peak, memory, plan.

python -m benchmarks.training --data-root DATASETS
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import Trainer, batches, documents, hf_bert, hf_modernbert, interleaved, ours, wikipedia
from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from recipes.runner import data_root
from terrazzo.config import from_dict
from terrazzo.data import PrepareConfig, prepare
from terrazzo.nn import parameter_count, training_flops
from terrazzo.provenance import peak_memory_bytes
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, plan, train
from terrazzo.train.hardware import has_fast_bf16
from terrazzo.train.metrics import MetricsLog, read_metrics

VOCAB_SIZE, MAX_LEN, DOCUMENTS, VALID = 30_528, 128, 32, 0.56
#: 6 layers of 256 with about 12.6 M parameters each: the gated model has the inner width that makes the count equal.
SHAPE = {"vocab_size": VOCAB_SIZE, "width": 256, "depth": 6, "heads": 4}
GATED_INNER, PLAIN_INNER = 704, 1024
CPU = torch.device("cpu")


def build(name: str, dtype: torch.dtype) -> Trainer:
    """One of the three models, of equal size."""
    torch.manual_seed(0)
    if name == "ours":
        return Trainer.of(ours(**SHAPE, inner=GATED_INNER), dtype)
    if name == "bert":
        return Trainer.of(hf_bert(**SHAPE, inner=PLAIN_INNER, max_len=MAX_LEN), torch.float32)
    return Trainer.of(hf_modernbert(**SHAPE, inner=GATED_INNER), dtype)


def peak_now(dtype: torch.dtype, repeats: int = 9) -> list[float]:
    """FLOP/s per process-CPU second of a 2048-cubed matrix product, for each repeat."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    rates = []
    for _ in range(repeats):
        begin = time.process_time()
        a @ b
        rates.append(2 * 2048**3 / (time.process_time() - begin))
    return rates


def speed(rows: list[np.ndarray], dtype: torch.dtype, rounds: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows about speed, with every measurement behind them."""
    trainers = {name: build(name, dtype) for name in ("ours", "bert", "modernbert")}
    model = trainers["ours"].model
    before = peak_now(dtype)
    padded, used = interleaved(trainers, batches(rows, DOCUMENTS, MAX_LEN, VALID), rounds)
    full, _ = interleaved(
        {n: trainers[n] for n in ("ours", "modernbert")}, batches(rows, DOCUMENTS, MAX_LEN, 1.0), rounds
    )
    peaks = before + peak_now(dtype)
    flops = [training_flops(model.config, b.packed.lengths, b.packed.masked_M.numel()) for b in used]  # type: ignore
    rates = [f / s for f, s in zip(flops, padded["ours"], strict=True)]
    kind = str(dtype).removeprefix("torch.")
    note = "" if dtype == torch.bfloat16 else "this CPU has no bf16 products, so both sides compute in fp32"
    sizes = ", ".join(f"{n} {sum(p.numel() for p in t.model.parameters()) / 1e6:.1f} M" for n, t in trainers.items())
    share = 100 * np.asarray(bootstrap_interval(rates, peaks))
    table = [
        (
            "C1",
            f"training, valid tokens/s, {VALID:.0%} valid",
            "transformers BERT, fp32, padded",
            4.0,
            6.0,
            padded,
            "bert",
        ),
        ("C2", "same", f"transformers ModernBERT, {kind}, sparse prediction", 1.3, 1.8, padded, "modernbert"),
        ("C3", "same, no padding to save", f"transformers ModernBERT, {kind}", 1.05, 1.3, full, "modernbert"),
    ]
    result = []
    for row_id, metric, peer, floor, goal, seconds, name in table:
        value, low, high = bootstrap_interval(seconds[name], seconds["ours"])
        result.append(
            Row(id=row_id, metric=metric, peer=peer, floor=floor, goal=goal, value=value, low=low, high=high, note=note)
        )
    result.append(
        Row(
            id="C5",
            metric=f"share of measured {kind} peak",
            peer="2048-cubed matrix product of the same run",
            floor=40,
            goal=55,
            value=share[0],
            low=share[1],
            high=share[2],
            unit="%",
            note=note,
        )
    )
    details = {
        "parameters": sizes,
        "valid": [b.valid for b in used],
        "cpu_seconds": {"padded": padded, "full": full},
        "tokens": [b.packed.num_tokens for b in used],
        "peak_flops_per_cpu_second": peaks,
        "threads": torch.get_num_threads(),
    }
    return result, details


def step_memory(name: str, rows: list[np.ndarray]) -> int:
    """Bytes that three training steps add to the peak of a process that has the batches and libraries."""
    stream = batches(rows, DOCUMENTS, MAX_LEN, VALID)
    chosen = [next(stream) for _ in range(3)]
    before = peak_memory_bytes()
    trainer = build(name, torch.bfloat16 if has_fast_bf16(CPU) else torch.float32)
    for batch in chosen:
        trainer.step(batch)
    return peak_memory_bytes() - before


def memory(rows: list[np.ndarray]) -> tuple[Row, dict[str, Any]]:
    """Peak memory of ours over BERT's, each in three fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npz"
        np.savez(file, *rows[:4000])
        bytes_of: dict[str, list[int]] = {"ours": [], "bert": []}
        for name in ("ours", "bert") * 3:
            command = [sys.executable, "-m", "benchmarks.training", "--step-memory", name, "--rows", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            bytes_of[name].append(int(json.loads(done.stdout.splitlines()[-1])))
    value, low, high = bootstrap_interval(bytes_of["ours"], bytes_of["bert"])
    row = Row(
        id="C7",
        metric="peak memory of a step, weights and optimizer state included",
        peer="transformers BERT",
        floor=0.5,
        goal=0.3,
        value=value,
        low=low,
        high=high,
        better="lower",
    )
    return row, {"bytes": bytes_of}


def planning(paragraphs: list[str], work: Path) -> tuple[Row, dict[str, Any]]:
    """What `plan` predicts for a step against the median step that then runs, for two shapes."""
    source = work / "text.jsonl"
    source.write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs), encoding="utf-8")
    prepare([source], work / "data", from_dict(PrepareConfig, {"vocab_size": 8192}))
    errors, cases = [], []
    for size, steps in (("tiny", 40), ("mini", 12)):
        stage = Stage(model=Init(size=size), sampling=Sampling(batch_tokens=8192), budget=Budget(steps=steps))
        config = RunConfig(data=str(work / "data"), out=str(work / size), stages=(stage,), eval_every=10**6)
        predicted = plan(config)[0].step_seconds
        train(config, hooks=lambda run: [MetricsLog(run / "metrics.jsonl")])
        ran = [line["step_seconds"] for line in read_metrics(work / size / "metrics.jsonl") if "loss" in line]
        actual = float(np.median(ran[2:]))
        errors.append(100 * abs(predicted - actual) / actual)
        cases.append({"size": size, "predicted": predicted, "actual": actual, "steps": ran})
    row = Row(
        id="C14",
        metric="error of the planned step time, worse of tiny and mini",
        peer="the median step that then ran",
        floor=15,
        goal=7,
        value=max(errors),
        unit="%",
        better="lower",
    )
    return row, {"cases": cases}


def main() -> None:
    """Measure and write results/training.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--step-memory", choices=("ours", "bert"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step_memory:
        with np.load(options.rows) as stored:
            print(step_memory(options.step_memory, list(stored.values())))
        return
    paragraphs = wikipedia(data_root(options.data_root), megabytes=12)
    rows = documents(paragraphs, VOCAB_SIZE, MAX_LEN)
    dtype = torch.bfloat16 if has_fast_bf16(CPU) else torch.float32
    table, details = speed(rows, dtype, options.rounds)
    memory_row, memory_details = memory(rows)
    with tempfile.TemporaryDirectory() as folder:
        plan_row, plan_details = planning(paragraphs[:6000], Path(folder))
    details |= {"model_parameters": parameter_count(build("ours", dtype).model.config)}  # type: ignore[arg-type]
    write("training", [*table, memory_row, plan_row], details | memory_details | plan_details, options.out)


if __name__ == "__main__":
    main()
