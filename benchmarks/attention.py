"""Attention on CPU, forward and backward, on real lengths: groups of similar length against the other ways to run it.

    python -m benchmarks.attention --data-root DATASETS

Also measured, for the choices that it settled: how unequal a group's lengths may be, and compiled MLPs and norms.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import Trainer, batches, documents, ours, wikipedia
from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from recipes.runner import data_root
from terrazzo.nn.backends import grouped
from terrazzo.nn.positions import alibi_slopes
from terrazzo.packed import Packed

HEADS, HEAD_WIDTH = 4, 64
SLACKS = (1.0, 1.125, 1.25, 1.5, 2.0)


def grouped_call(batch: Packed, qkv: Tensor, slack: float) -> Callable[[], Tensor]:
    """Our backend with groups whose longest document is at most `slack` times the shortest."""
    backend, slopes = grouped.Grouped(), alibi_slopes(HEADS)
    before, grouped.SLACK = grouped.SLACK, slack
    plan = backend.plan(batch, slopes, None)
    grouped.SLACK = before
    return lambda: backend.attend(qkv, plan, 0.0)


def document_call(batch: Packed, qkv: Tensor) -> Callable[[], Tensor]:
    """One SDPA call a document."""
    position = torch.arange(batch.max_len)
    bias = -alibi_slopes(HEADS)[:, None, None] * (position[:, None] - position[None]).abs()

    def call() -> Tensor:
        outs = []
        for part in qkv.split(batch.lengths):
            q, k, v = part.permute(1, 2, 0, 3)[:, None]
            size = part.shape[0]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, :, :size, :size])
            outs.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(outs)

    return call


def padded_call(batch: Packed, qkv: Tensor) -> Callable[[], Tensor]:
    """Pad to the longest, one SDPA call with a dense (b, heads, s, s) bias, and gather back: MosaicBERT's algorithm."""
    position = torch.arange(batch.max_len)
    bias = -alibi_slopes(HEADS)[:, None, None] * (position[:, None] - position[None]).abs()
    hidden = position[None] >= torch.tensor(batch.lengths)[:, None]
    dense = bias[None].masked_fill(hidden[:, None, None], -1e4)

    def call() -> Tensor:
        q, k, v = batch.to_padded(qkv).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense).transpose(1, 2)
        return out[batch.document_T, batch.positions_T].flatten(1)

    return call


def seconds_of(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of forward and backward, A-B-C-A-B-C, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            begin = time.process_time()
            out = call()
            out.backward(torch.ones_like(out))
            if turn >= 2:
                seconds[name].append(time.process_time() - begin)
    return seconds


def compiled_steps(rows: list[np.ndarray], rounds: int) -> dict[str, list[float]] | None:
    """CPU seconds a training step with and without compiled blocks; None where there is no C++ compiler."""
    if shutil.which("g++") is None:
        return None
    shape: dict[str, Any] = {"vocab_size": 8192, "width": 256, "depth": 4, "heads": 4, "inner": 704}
    plain, compiled = (Trainer.of(ours(**shape), torch.float32) for _ in range(2))
    compiled.model.encoder.compile_blocks()  # type: ignore[operator,union-attr]
    seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
    for turn, batch in zip(range(rounds + 3), batches(rows, 32, 128, 0.56), strict=False):
        for name, trainer in (("plain", plain), ("compiled", compiled)):
            begin = time.process_time()
            trainer.step(batch)
            if turn >= 3:
                seconds[name].append(time.process_time() - begin)
    return seconds


def main() -> None:
    """Measure and write results/attention.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = documents(wikipedia(data_root(options.data_root), megabytes=4), 8192, 128)
    batch = next(batches(rows, 32, 128, 0.56)).packed
    qkv = torch.randn(batch.num_tokens, 3, HEADS, HEAD_WIDTH, requires_grad=True)
    calls = {f"groups {slack}": grouped_call(batch, qkv, slack) for slack in SLACKS}
    calls |= {"document by document": document_call(batch, qkv), "padded, dense bias": padded_call(batch, qkv)}
    reference = calls["document by document"]()
    for call in calls.values():
        torch.testing.assert_close(call(), reference)
    seconds = seconds_of(calls, options.rounds)
    chosen = seconds[f"groups {grouped.SLACK}"]
    table = []
    for row_id, peer in (("A1", "document by document"), ("A2", "padded, dense bias")):
        value, low, high = bootstrap_interval(seconds[peer], chosen)
        metric = "ALiBi attention on CPU, forward and backward, 56% valid of 128"
        table.append(
            Row(id=row_id, metric=metric, peer=f"SDPA, {peer}", floor=None, goal=None, value=value, low=low, high=high)
        )
    steps = compiled_steps(rows, options.rounds)
    if steps:
        value, low, high = bootstrap_interval(steps["plain"], steps["compiled"])
        metric = "training step with compiled blocks, times as fast"
        table.append(
            Row(id="A3", metric=metric, peer="the same, eager", floor=None, goal=None, value=value, low=low, high=high)
        )
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    write("attention", table, {"median_cpu_seconds": medians, "cpu_seconds": seconds, "steps": steps}, options.out)


if __name__ == "__main__":
    main()
