"""Fine-tuning beside the transformers Trainer: MiniLM-L6 on SST-2 (8,000 rows), MRPC and CLINC150.

python -m benchmarks.finetuning --data-root DATASETS --accuracy-cache SCORES.json
python -m benchmarks.finetuning --data-root DATASETS --accuracy-cache SCORES.json --only-accuracy --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetuning_data import PROBLEMS, Problem, load_problem
from benchmarks.finetuning_ours import our_accuracy, our_turns
from benchmarks.result import RESULTS, Row, write
from benchmarks.trainer_peer import BATCH_ROWS, EPOCHS, sampled_order, trainer_accuracy, trainer_turns
from benchmarks.turns import Spent, alternate
from recipes.runner import data_root
from terrazzo.errors import InputError
from terrazzo.provenance import write_json_atomic

#: Peak learning rate of each side, chosen on seed 0 from the runs that the accuracy cache holds.
LEARNING_RATE = {
    "trainer": {"sst2": 1e-4, "mrpc": 1e-4, "clinc150": 3e-4},
    "ours": {"sst2": 1e-4, "mrpc": 1e-4, "clinc150": 3e-4},
}
SIDES: dict[str, Callable[[Problem, int, float], float]] = {"trainer": trainer_accuracy, "ours": our_accuracy}
FP32 = "this CPU has no bf16 products, so both sides compute in fp32; the same rows in the same order on both sides"

#: Published figures of 6-layer distilled encoders; what is said of each was read in the source named.
PUBLISHED: list[dict[str, Any]] = [
    {
        "model": "MiniLM-L6xH384 (22 M parameters)",
        "figures": {"SST-2": 91.5, "MRPC": 88.9},
        "split": "dev",
        "source": "github.com/microsoft/unilm, minilm/README.md, table of fine-tuning on NLU tasks",
        "remark": "the table does not say whether MRPC is accuracy or F1, nor how many rows SST-2 learned from; "
        "all-MiniLM-L6-v2 is another model: every second layer of the 12-layer one, then trained on sentence pairs",
    },
    {
        "model": "DistilBERT base cased (6 layers of 768)",
        "figures": {"SST-2": 90.4, "MRPC": 85.6, "STS-B": 85.5},
        "split": "named 'Glue test results' there",
        "source": "huggingface.co/distilbert/distilbert-base-cased, model card",
    },
    {
        "model": "DistilBERT base uncased (6 layers of 768)",
        "figures": {"CoNLL-2003 F1": 93.1},
        "split": "not stated",
        "source": "huggingface.co/zhihao/distilbert-base-uncased-finetuned-ner, model card, F1 0.9307; "
        "for a 6-layer model of width 384 no published figure was found for STS-B or CoNLL-2003",
    },
]


def timed(problem: Problem, steps: int, chunk: int, *, padded: bool) -> dict[str, Spent]:
    """Both loops over `steps` batches drawn evenly over an epoch, in turns; the first chunk of each is warm-up."""
    order = sampled_order(problem, steps, padded=padded)
    order = order[: len(order) // (BATCH_ROWS * chunk) * BATCH_ROWS * chunk]
    warm_up = order[: BATCH_ROWS * chunk]
    rows = [*warm_up, *order]
    loops = {
        "ours": partial(our_turns, "ours", problem, rows),
        "trainer": partial(trainer_turns, "trainer", problem, rows, padded=padded),
    }
    spent = alternate(loops, chunk)
    return {name: Spent(side.cpu_seconds[1:], side.seconds[1:]) for name, side in spent.items()}


def ratio(
    peer: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], weights: Sequence[float], draws: int = 10_000
) -> tuple[float, float, float]:
    """The peer's time over ours for whole runs, and the ends of its 95 % interval over resampled chunks.

    Args:
        peer, ours: seconds of each chunk for each problem; the two sides' chunks hold the same rows.
        weights: chunks that a whole run of each problem has.
    """
    generator = np.random.default_rng(0)
    totals = np.zeros((2, draws + 1))
    for theirs, own, weight in zip(peer, ours, weights, strict=True):
        chunks_2K = np.asarray([theirs, own])
        picks = generator.integers(0, chunks_2K.shape[1], size=(draws, chunks_2K.shape[1]))
        means_2D = np.concatenate([chunks_2K.mean(1, keepdims=True), chunks_2K[:, picks].mean(2)], axis=1)
        totals += weight * means_2D
    ratios = totals[0] / totals[1]
    low, high = np.percentile(ratios[1:], [2.5, 97.5])
    return float(ratios[0]), float(low), float(high)


def speed_rows(
    row_id: str, problems: Sequence[Problem], measured: dict[str, dict[str, Spent]], chunk: int, peer: str, note: str
) -> list[Row]:
    """A row for the three problems together, and one for each."""
    floor, goal = (3.0, 5.0) if row_id == "F1" else (1.2, 1.6)
    weights = {p.name: EPOCHS * math.ceil(len(p.train) / BATCH_ROWS) / chunk for p in problems}
    rows = []
    for index, names in enumerate([[p.name for p in problems], *([p.name] for p in problems)]):
        shares = [weights[name] for name in names]

        def of(side: str, clock: str, names: list[str] = names) -> list[list[float]]:
            return [getattr(measured[name][side], clock) for name in names]

        value, low, high = ratio(of("trainer", "seconds"), of("ours", "seconds"), shares)
        cpu, *_ = ratio(of("trainer", "cpu_seconds"), of("ours", "cpu_seconds"), shares)
        what = ", ".join(names) if index else "all three"
        rows.append(
            Row(
                id=row_id + (chr(ord("a") + index - 1) if index else ""),
                metric=f"fine-tuning MiniLM-L6, {EPOCHS} epochs of {what}, wall time",
                peer=peer,
                floor=floor,
                goal=goal,
                value=value,
                low=low,
                high=high,
                note=f"{cpu:.2f} in CPU time; {note}",
            )
        )
    return rows


def accuracy_rows(problems: Sequence[Problem], cache: dict[str, Any]) -> list[Row]:
    """Ours minus Trainer's accuracy in points, for each problem and pooled, seeds that both sides ran."""
    rows, gaps, spreads = [], [], []
    for index, problem in enumerate(problems):
        scores = {side: _by_seed(cache, side, problem.name) for side in SIDES}
        seeds = sorted(scores["ours"].keys() & scores["trainer"].keys())
        row_id, metric = f"F3{chr(ord('a') + index)}", f"accuracy on {problem.name}, ours minus Trainer's"
        if len(seeds) < 2:
            why = f"not run ({len(seeds)} seeds finished on both sides)"
            rows.append(_gap_row(row_id, metric, status=why))
            continue
        ours, theirs = (100 * np.array([scores[side][s] for s in seeds]) for side in ("ours", "trainer"))
        spread = max(float(theirs.std(ddof=1)), 1e-9)
        gaps.append(ours.mean() - theirs.mean())
        spreads.append(spread)
        low, high = _gap_interval(ours, theirs)
        note = (
            f"{len(seeds)} seeds; ours {ours.mean():.2f}, Trainer's {theirs.mean():.2f} with a spread of {spread:.2f} "
            "over seeds; padding is masked, so padded to 256 it scores the same"
        )
        rows.append(_gap_row(row_id, metric, float(gaps[-1]), low, high, floor=-spread, note=note))
    if len(gaps) == len(problems):
        spread = float(np.sqrt(np.mean(np.square(spreads))))
        note = f"mean over the problems; Trainer's spread over seeds, pooled, is {spread:.2f}"
        pooled = _gap_row(
            "F3", "accuracy, ours minus Trainer's, mean of all", float(np.mean(gaps)), floor=-spread, note=note
        )
        rows.insert(0, pooled)
    return rows


def _gap_row(row_id: str, metric: str, *interval: float, floor: float | None = None, **fields: Any) -> Row:
    value, low, high = (*interval, None, None, None)[:3]
    return Row(
        id=row_id,
        metric=metric,
        peer="transformers Trainer, length groups",
        floor=floor,
        goal=None,
        value=value,
        low=low,
        high=high,
        unit="points",
        **fields,
    )


def _gap_interval(ours: np.ndarray, theirs: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = [s[generator.integers(0, len(s), size=(draws, len(s)))].mean(1) for s in (ours, theirs)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def _by_seed(cache: dict[str, Any], side: str, problem: str) -> dict[int, float]:
    rate = LEARNING_RATE[side][problem]
    return {
        entry["seed"]: entry["accuracy"]
        for entry in cache.values()
        if (entry["side"], entry["problem"], entry["learning_rate"]) == (side, problem, rate)
    }


def read_cache(path: Path | None) -> dict[str, Any]:
    """Finished accuracy runs by "side/problem/learning rate/seed"; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}


def run_accuracy(cache: Path, root: Path, problems: Sequence[str], sides: Sequence[str], seeds: Sequence[int]) -> None:
    """Run what the cache lacks, seed by seed, and keep each run as it finishes; so it can be stopped and goes on."""
    for seed in seeds:
        for name in problems:
            for side in sides:
                rate = LEARNING_RATE[side][name]
                key = f"{side}/{name}/{rate:g}/{seed}"
                if key in read_cache(cache):
                    continue
                begin = time.perf_counter()
                accuracy = SIDES[side](load_problem(name, root), seed, rate)
                entry = {"side": side, "problem": name, "learning_rate": rate, "seed": seed, "accuracy": accuracy}
                write_json_atomic(cache, read_cache(cache) | {key: entry | {"seconds": time.perf_counter() - begin}})
                print(f"{key}: {accuracy:.4f}", flush=True)


def main() -> None:
    """Measure and write results/finetuning.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--accuracy-cache", type=Path, help="JSON of finished accuracy runs, added to")
    parser.add_argument("--only-accuracy", action="store_true", help="run what the cache lacks, measure no time")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=115, help="batches of an epoch that are timed")
    parser.add_argument("--padded-steps", type=int, default=10, help="the same for the peer padded to 256")
    parser.add_argument("--chunk", type=int, default=5, help="steps of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    root = data_root(options.data_root)
    if root is None:
        raise InputError("give --data-root, or set TERRAZZO_DATA, to the folder that holds glue and clinc150")
    if options.only_accuracy:
        run_accuracy(options.accuracy_cache, root, options.problems, options.sides, options.seeds)
        return
    problems = [load_problem(name, root) for name in options.problems]
    grouped = {p.name: timed(p, options.steps, options.chunk, padded=False) for p in problems}
    padded = {p.name: timed(p, options.padded_steps, 2, padded=True) for p in problems}
    sampled = "its time per step is measured on batches drawn over an epoch, times the number of steps; " + FP32
    rows = [
        *speed_rows("F1", problems, padded, 2, "transformers Trainer, padded to 256", sampled),
        *speed_rows("F2", problems, grouped, options.chunk, "transformers Trainer, length groups, fp32", FP32),
        *accuracy_rows(problems, cache := read_cache(options.accuracy_cache)),
    ]
    details = {
        "threads": torch.get_num_threads(),
        "chunk_seconds": {
            "grouped": {name: {side: vars(s) for side, s in both.items()} for name, both in grouped.items()},
            "padded": {name: {side: vars(s) for side, s in both.items()} for name, both in padded.items()},
        },
        "steps_of_a_run": {p.name: EPOCHS * math.ceil(len(p.train) / BATCH_ROWS) for p in problems},
        "learning_rates": LEARNING_RATE,
        "accuracy_runs": cache,
        "published": PUBLISHED,
    }
    write("finetuning", rows, details, options.out)


if __name__ == "__main__":
    main()
