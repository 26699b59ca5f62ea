"""Arms of a comparison: training runs of one thread each, several at a time, finished ones never repeated."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terrazzo.checkpoint import load_model
from terrazzo.data import Corpus, evaluation_batches, word_start_table
from terrazzo.data.corpus import Split
from terrazzo.errors import RunError
from terrazzo.nn import MaskedLM
from terrazzo.objectives import MLMConfig
from terrazzo.train import RunConfig, Stage, train
from terrazzo.train.distributed import Ranks, StepModule
from terrazzo.train.evaluation import evaluate
from terrazzo.train.metrics import MetricsLog, read_metrics

Log = Callable[[str], None]
_MICRO_TOKENS = 4096
_CURVE_POINTS = 40


def arm(work: Path, name: str, data: Path, stage: Stage, seed: int, **fields: Any) -> RunConfig:
    """The run of one arm, in a folder of `work` named after all that decides it; `fields` are those of RunConfig."""
    identity = hashlib.sha256(repr((stage, seed, fields, Corpus.open(data).fingerprint)).encode()).hexdigest()[:10]
    own: dict[str, Any] = {"threads": 1, "checkpoint_every": 10**9, "eval_every": 10**9, **fields}
    out = work / "runs" / f"{name}-{seed}-{identity}"
    return RunConfig(data=str(data), out=str(out), stages=(stage,), seed=seed, **own)


def train_arms(configs: Sequence[RunConfig], workers: int, log: Log) -> list[float]:
    """Train every run, `workers` at a time (0: here, one by one); returns their final held-out losses in nats.

    A run that diverged has infinity. What an interrupted attempt left is thrown away.
    """
    unique = list({config.out: config for config in configs}.values())
    results: dict[str, float] = {}
    for config, loss in _finished(unique, workers):
        results[config.out] = loss
        log(f"{Path(config.out).name}: held-out loss {loss:.4f} ({len(results)} of {len(unique)} runs)")
    return [results[config.out] for config in configs]


def _finished(configs: list[RunConfig], workers: int) -> Iterator[tuple[RunConfig, float]]:
    if workers == 0:
        yield from ((config, train_arm(config)) for config in configs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(train_arm, config): config for config in configs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def train_by_seed(
    work: Path,
    corpora: Mapping[str, Corpus],
    stage: Stage,
    seeds: Sequence[int],
    workers: int,
    log: Log,
    **fields: Any,
) -> dict[str, list[RunConfig]]:
    """The finished runs of one stage on each corpus, one a seed; all arms of a seed before the next seed."""
    configs = {
        name: [arm(work, name, corpus.path, stage, seed, **fields) for seed in seeds]
        for name, corpus in corpora.items()
    }
    train_arms([config for one_seed in zip(*configs.values(), strict=True) for config in one_seed], workers, log)
    return configs


def train_arm(config: RunConfig) -> float:
    """Train one run unless it is finished; returns its final held-out loss."""
    out = Path(config.out)
    if not (out / "model").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        try:
            if train(config, hooks=lambda folder: [MetricsLog(folder / "metrics.jsonl")]) is None:
                raise KeyboardInterrupt
        except RunError:
            return float("inf")
    return float([line["heldout_loss"] for line in read_metrics(out / "metrics.jsonl") if "heldout_loss" in line][-1])


def curve(config: RunConfig) -> dict[str, list[float]]:
    """Tokens and training loss of a run, means over stretches of steps."""
    file = Path(config.out) / "metrics.jsonl"
    lines = [line for line in (read_metrics(file) if file.is_file() else []) if "loss" in line]
    stretches = [part for part in np.array_split(np.arange(len(lines)), _CURVE_POINTS) if len(part)]
    return {
        "tokens": [lines[part[-1]]["tokens"] for part in stretches],
        "loss": [round(statistics.fmean(lines[i]["loss"] for i in part), 4) for part in stretches],
    }


def loss_on(model: Path, corpus: Corpus, split: Split, max_len: int, max_tokens: int) -> float:
    """Loss of a finished model, in nats a masked token, on a fixed sample of `split` with fixed masks."""
    encoder = load_model(model)
    assert isinstance(encoder, MaskedLM)
    objective = MLMConfig().build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
    micro = max(_MICRO_TOKENS, max_len)
    batches = evaluation_batches(
        split, corpus.special, max_len=max_len, objective=objective, micro_tokens=micro, max_tokens=max_tokens
    )
    ranks = Ranks(0, 1, torch.device("cpu"))
    return evaluate(StepModule(encoder, objective), batches, ranks, nullcontext())["heldout_loss"]


def unigram_loss(train_split: Split, split: Split, vocab_size: int) -> float:
    """Nats a token of `split` under the token frequencies of `train_split`: what a model without context can reach."""
    counts = np.ones(vocab_size) + np.bincount(_tokens(train_split), minlength=vocab_size)
    return float(-np.log(counts / counts.sum())[_tokens(split)].mean())


def texts_of(corpus: Corpus) -> list[str]:
    """Every document of a data folder as its tokenizer decodes it."""
    splits = (corpus.train, corpus.heldout)
    ids = [split.document(i).tolist() for split in splits for i in range(split.num_documents)]
    return list(corpus.tokenizer.decode_batch(ids, skip_special_tokens=False))


def samples(config: RunConfig, count: int = 6) -> list[str]:
    """Fill-mask predictions of a finished run, a line each: the text, then every hidden token and the best guesses."""
    rows = json.loads((Path(config.out) / "samples.json").read_text(encoding="utf-8"))[:count]
    return [f"{row['text']} || " + "; ".join(map(_guessed, row["truth"], row["predictions"])) for row in rows]


def _guessed(truth: str, predictions: Sequence[Mapping[str, Any]]) -> str:
    return f"{truth.strip()}: {', '.join(guess['token'].strip() for guess in predictions[:3])}"


def spread(*arms: Sequence[float]) -> float:
    """The widest range over seeds of any arm: a smaller difference is no difference."""
    return max(max(losses) - min(losses) for losses in arms)


def per_seed(seeds: Sequence[int], values: Mapping[str, float | Sequence[float]]) -> dict[int, dict[str, float]]:
    """Metrics as a recipe returns them; a plain number holds for every seed."""
    return {
        seed: {name: value if isinstance(value, (int, float)) else value[i] for name, value in values.items()}
        for i, seed in enumerate(seeds)
    }


def _tokens(split: Split) -> np.ndarray:
    return np.concatenate([np.asarray(split.document(i), dtype=np.int64) for i in range(split.num_documents)])
