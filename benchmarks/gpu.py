"""The GPU's rows: training beside compiled transformers BERT, packed ALiBi attention beside SDPA, share of peak.

    python -m benchmarks.gpu --data-root DATASETS

Without a GPU it writes the same rows as "not run (no GPU)". Before it times anything it checks FlexAttention, forward
and backward, against the reference in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import Batch, Trainer, batches, documents, hf_bert, ours, wikipedia
from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from recipes.runner import data_root
from terrazzo.nn import training_flops
from terrazzo.nn.backends import BACKENDS
from terrazzo.nn.positions import alibi_slopes
from terrazzo.packed import Packed
from terrazzo.train.hardware import measured_peak

VOCAB_SIZE = 30_528


def planned_rows() -> dict[str, dict[str, Any]]:
    """What is to be measured, by row id."""
    bert = "transformers BERT, SDPA, bf16, compiled"
    dense = "SDPA with a dense (b, heads, s, s) bias, bf16"
    return {
        "G1": {"metric": "training base at 128 tokens, valid tokens/s", "peer": bert, "floor": 2.0, "goal": 3.0},
        "G2": {"metric": "training base at 512 tokens, 56 % valid", "peer": bert, "floor": 2.5, "goal": 4.0},
        "G5": {"metric": "ALiBi attention at 512, forward and backward", "peer": dense, "floor": 2.0, "goal": 3.0},
        "G5b": {"metric": "ALiBi attention at 2048, forward and backward", "peer": dense, "floor": 4.0, "goal": 8.0},
        "G7": {
            "metric": "share of measured bf16 peak, base",
            "peer": "matrix product",
            "floor": 40,
            "goal": 55,
            "unit": "%",
        },
        "G12": {
            "metric": "host syncs of a training step",
            "peer": "",
            "floor": 1,
            "goal": 0,
            "unit": "",
            "better": "lower",
        },
    }


def check_flex() -> dict[str, float]:
    """Relative error of FlexAttention's output and gradient against the reference, fp32.

    Raises:
        AssertionError: an error that fp32 with tf32-free products does not explain.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(1, 700, 16))
    slopes = alibi_slopes(12)
    errors = {}
    for window in (None, 128):
        values = []
        for name in ("reference", "flex"):
            torch.manual_seed(0)
            qkv = torch.randn(sum(lengths), 3, 12, 64, device="cuda", requires_grad=True)
            batch = Packed(tokens_T=torch.zeros(sum(lengths), dtype=torch.int64, device="cuda"), lengths=lengths)
            backend = BACKENDS[name]
            out = backend.attend(qkv, backend.plan(batch, slopes.cuda(), window), 0.0)
            out.square().sum().backward()
            assert qkv.grad is not None
            values.append((out.detach(), qkv.grad))
        for kind, wanted, got in zip(("output", "gradient"), *values, strict=True):
            error = float((got - wanted).norm() / wanted.norm())
            assert error < 1e-3, (window, kind, error)
            errors[f"window {window}, {kind}"] = error
    return errors


def timed(work: Any, repeats: int = 20, warmup: int = 5) -> list[float]:
    """Seconds of each call, the GPU waited for."""
    seconds = []
    for turn in range(warmup + repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work(turn)
        torch.cuda.synchronize()
        if turn >= warmup:
            seconds.append(time.perf_counter() - begin)
    return seconds


def training(rows: list[np.ndarray], max_len: int, size: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds a step of ours and of compiled BERT, blocks A-B-A-B, and our share of the measured peak."""
    device = torch.device("cuda")
    shape = {"vocab_size": VOCAB_SIZE, "width": 768, "depth": 12, "heads": 12}
    mine = Trainer.of(ours(**shape, inner=2048).cuda(), torch.bfloat16)
    peer = Trainer.of(hf_bert(**shape, inner=3072, max_len=max_len).cuda(), torch.bfloat16)
    peer.model = torch.compile(peer.model)  # type: ignore[assignment]
    stream = batches(rows, size, max_len, 0.56)
    used = [next(stream).to(device) for _ in range(8)]
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(2):
        for name, trainer in (("ours", mine), ("peer", peer)):
            seconds[name] += timed(lambda turn, trainer=trainer: trainer.step(used[turn % len(used)]))
    flops = statistics.mean(_flops(mine, batch) for batch in used)
    peak = measured_peak(device, torch.bfloat16)
    return seconds["ours"], seconds["peer"], [flops / (s * peak) for s in seconds["ours"]]


def _flops(trainer: Trainer, batch: Batch) -> float:
    assert batch.packed.masked_M is not None
    return training_flops(trainer.model.config, batch.packed.lengths, batch.packed.masked_M.numel())  # type: ignore


def attention(max_len: int, tokens: int = 65_536) -> tuple[list[float], list[float]]:
    """Seconds of forward and backward of packed ALiBi attention, and of padded SDPA with its dense bias, 56 % valid."""
    heads, width = 12, 64
    draw = np.random.default_rng(0)
    lengths = tuple(int(n) for n in draw.integers(max_len // 8, max_len + 1, tokens // max_len))
    backend, slopes = BACKENDS["flex"], alibi_slopes(heads).cuda()
    batch = Packed(tokens_T=torch.zeros(sum(lengths), dtype=torch.int64, device="cuda"), lengths=lengths)
    qkv = torch.randn(sum(lengths), 3, heads, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    padded = torch.randn(
        3, len(lengths), heads, max_len, width, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    grad_packed, grad_padded = (
        torch.randn(sum(lengths), heads * width, device="cuda").bfloat16(),
        torch.randn_like(padded[0]),
    )
    position = torch.arange(max_len, device="cuda")
    bias = -slopes[:, None, None] * (position[:, None] - position[None]).abs()
    hidden = position[None] >= torch.tensor(lengths, device="cuda")[:, None]
    dense = bias[None].masked_fill(hidden[:, None, None], -1e4).bfloat16()

    def packed_call(_turn: int) -> None:
        backend.attend(qkv, backend.plan(batch, slopes, None), 0.0).backward(grad_packed)

    def dense_call(_turn: int) -> None:
        F.scaled_dot_product_attention(padded[0], padded[1], padded[2], attn_mask=dense).backward(grad_padded)

    pairs = [(timed(packed_call), timed(dense_call)) for _ in range(2)]
    return [s for mine, _ in pairs for s in mine], [s for _, peer in pairs for s in peer]


class CountSyncs(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.nonzero.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def measure(rows_128: list[np.ndarray], rows_512: list[np.ndarray]) -> tuple[list[Row], dict[str, Any]]:
    """All rows on this GPU."""
    details: dict[str, Any] = {"flex_errors": check_flex()}
    values: dict[str, tuple[float, float, float]] = {}
    for row_id, rows, max_len, size in (("G1", rows_128, 128, 512), ("G2", rows_512, 512, 128)):
        mine, peer, share = training(rows, max_len, size)
        values[row_id] = bootstrap_interval(peer, mine)
        details[row_id] = {"ours": mine, "peer": peer, "share_of_peak": share}
        if row_id == "G2":
            low, high = np.percentile(share, [2.5, 97.5])
            values["G7"] = (100 * statistics.median(share), 100 * float(low), 100 * float(high))
    for row_id, max_len in (("G5", 512), ("G5b", 2048)):
        mine, peer = attention(max_len)
        values[row_id] = bootstrap_interval(peer, mine)
        details[row_id] = {"ours": mine, "peer": peer}
    values["G12"] = (float(count_syncs(rows_128)),) * 3
    table = planned_rows()
    made = [Row(id=i, **table[i], value=v, low=low, high=high) for i, (v, low, high) in values.items()]
    return made, details


def count_syncs(rows: list[np.ndarray]) -> int:
    """Host syncs of a step after warm-up, the read-out of the loss included as the loop does it."""
    trainer = Trainer.of(ours(VOCAB_SIZE, 768, 12, 12, 2048).cuda(), torch.bfloat16)
    batch = next(batches(rows, 64, 128, 0.56)).to(torch.device("cuda"))
    losses: list[Tensor] = [trainer.step(batch) for _ in range(2)]
    with CountSyncs() as counter:
        losses.append(trainer.step(batch))
    losses[-1].item()
    return counter.count + 1


def main() -> None:
    """Measure and write results/gpu.json, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        rows = [Row(id=i, **fields, status="not run (no GPU)") for i, fields in planned_rows().items()]
        write("gpu", rows, folder=options.out)
        return
    paragraphs = wikipedia(data_root(options.data_root), megabytes=20)
    articles = [" ".join(paragraphs[i : i + 6]) for i in range(0, len(paragraphs), 6)]
    table, details = measure(documents(paragraphs, VOCAB_SIZE, 128), documents(articles, VOCAB_SIZE, 512))
    write("gpu", table, details, options.out)


if __name__ == "__main__":
    main()
