"""Unpadded BERT over several ranks: how even the work is, what padding costs, and that the gradient stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recipes.claims import Tier
from recipes.runner import Context
from recipes.unpadded_bert.picture import draw
from recipes.unpadded_bert.ranks import gradient, mean_of_means, over_processes
from recipes.unpadded_bert.speed import attention_times, batches_of, median_ratio, step_times
from recipes.wikipedia import corpus_of
from terrazzo.config import config
from terrazzo.data import Corpus, Stream
from terrazzo.data.packing import balance, imbalance, loads, serpentine
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.train.distributed import Ranks

RESULTS = Path(__file__).with_name("results")
#: ranks and documents a rank; 8 x 56 is the batch of the paper's 8-GPU run
LAYOUTS = ((2, 16), (8, 16), (8, 56), (64, 16))


@config
class Settings:
    """A tier.

    Args:
        max_len: longest document for balance and speed, in tokens; longer ones are cut.
        steps: steps of the stream that the balance is averaged over.
        pieces: documents of a step whose time is measured.
        rounds: steps that are measured for each seed.
        megabytes: of Wikipedia text, a document a paragraph.
    """

    max_len: int = 512
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int = 344
    steps: int = 50
    pieces: int = 32
    rounds: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    megabytes: float = 12.0
    vocab_size: int = 4096


TIERS = {
    "smoke": Settings(
        max_len=64, width=32, depth=2, num_heads=2, mlp_width=64, steps=2, pieces=16, rounds=2, seeds=(0,)
    ),
    "small": Settings(),
}


def in_stream_order(lengths: np.ndarray, ranks: int) -> np.ndarray:
    """Every rank takes its block of consecutive documents."""
    return np.arange(len(lengths)) * ranks // len(lengths)


RULES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "naive": in_stream_order,
    "serpentine": serpentine,
    "lpt": balance,
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Metrics per seed of the stream: imbalance, speed-ups, difference of gradients."""
    if tier == "paper":
        raise InputError("the paper tier needs 8 GPUs and MLPerf's BERT data set; run --tier small")
    settings = TIERS[tier]
    corpus = corpus_of(tier, context, settings.megabytes, settings.vocab_size, documents=1200)
    context.record("config", settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    difference = gradient_differences(corpus, context)
    metrics = {seed: {**_measure(settings, corpus, seed, context), **difference} for seed in settings.seeds}
    torch.set_num_threads(threads)
    draw(metrics, LAYOUTS, RESULTS if tier == "small" else context.work)
    return metrics


def gradient_differences(corpus: Corpus, context: Context) -> dict[str, float]:
    """Two balanced ranks against one process, and for contrast the mean of the ranks' own means."""
    whole = gradient(corpus, Ranks(0, 1, torch.device("cpu")))
    shared = over_processes(corpus, context.work, 2)
    figures = {
        "gradient_difference": float((shared - whole).norm() / whole.norm()),
        "mean_of_means_difference": float((mean_of_means(corpus, 2) - whole).norm() / whole.norm()),
    }
    context.log(f"gradients of two ranks and of one process: {figures}")
    return figures


def _measure(settings: Settings, corpus: Corpus, seed: int, context: Context) -> dict[str, float]:
    figures = _balance(settings, corpus, seed)
    encoder = EncoderConfig(
        vocab_size=corpus.vocab_size,
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        mlp_width=settings.mlp_width,
        max_len=settings.max_len,
        dropout=0.0,
    )
    batches = batches_of(corpus, encoder, settings.pieces, settings.rounds + 1, seed)
    steps, attention = step_times(corpus, encoder, batches), attention_times(encoder, batches)
    context.record(f"seconds_seed_{seed}", {"step": steps, "attention": attention})
    slots = settings.pieces * settings.max_len
    figures |= {
        "valid_share": float(np.mean([batch.num_tokens / slots for batch in batches[1:]])),
        "step_speedup": median_ratio(steps["padded"], steps["unpadded"]),
        "step_share": median_ratio(steps["unpadded"], steps["padded"]),
        "four_groups_speedup": median_ratio(attention["one_group"], attention["four_groups"]),
        "fine_groups_speedup": median_ratio(attention["one_group"], attention["fine_groups"]),
    }
    context.log(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return figures


def _balance(settings: Settings, corpus: Corpus, seed: int) -> dict[str, float]:
    """Fullest rank over the mean, averaged over steps: in stream order, the paper's rule, ours."""
    figures = {}
    for ranks, documents in LAYOUTS:
        stream = Stream(
            corpus.train, corpus.special, max_len=settings.max_len, pieces_per_step=ranks * documents, seed=seed
        )
        lengths = [stream.step(t).lengths for t in range(settings.steps)]
        for name, rule in RULES.items():
            shares = [imbalance(loads(sizes, rule(sizes, ranks), ranks)) for sizes in lengths]
            figures[f"{name}_{ranks}x{documents}"] = float(np.mean(shares))
    return figures
