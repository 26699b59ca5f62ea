"""Tiny corpora and models, and the checks that every training method must pass; for our tests and for yours.

def test_my_optimizer(tmp_path):
    check_method(tmp_path, optimizer=MyConfig(lr=1e-2))
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from terrazzo.checkpoint import load_model
from terrazzo.data import Corpus
from terrazzo.data.corpus import manifest_of
from terrazzo.data.shards import ShardWriter, token_dtype
from terrazzo.data.tokenizer import encode_batch, train_tokenizer
from terrazzo.nn import Encoder
from terrazzo.provenance import write_json_atomic
from terrazzo.tasks.model import TaskModel, save_task_model
from terrazzo.tasks.task import Task
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, read_run, resolve, train
from terrazzo.train.metrics import MetricsLog, read_metrics
from terrazzo.train.workload import Workload

#: Fields of an encoder that trains a step in milliseconds.
TINY_MODEL = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64, "max_len": 64}

_SUBJECTS = {"the cat": "purrs", "the dog": "barks", "a bird": "sings", "the river": "flows", "an engine": "hums"}
_PLACES = ("in the garden", "near the old house", "behind the wall", "at night", "under a bridge", "all day long")
_ENDS = ("and nobody listens", "while it rains", "because it is spring", "until morning", "again and again")


def tiny_texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of a small grammar, of mixed lengths, in which some words follow from others."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        sentences = []
        for _ in range(draw.randint(1, 4)):
            subject, verb = draw.choice(list(_SUBJECTS.items()))
            sentences.append(f"{subject} {verb} {draw.choice(_PLACES)} {draw.choice(_ENDS)}")
        texts.append(". ".join(sentences) + f" {draw.randint(0, 99)}.")
    return texts


def tiny_corpus(path: Path, documents: int = 400, seed: int = 0) -> Corpus:
    """A data folder of `documents` training documents and a tenth as many held out, made in a fraction of a second."""
    path.mkdir(parents=True)
    texts = tiny_texts(documents + documents // 10, seed)
    tokenizer = train_tokenizer(lambda: texts, "wordpiece", 128, shrink=True)
    tokenizer.save(str(path / "tokenizer.json"))
    shards: dict[str, list[dict[str, Any]]] = {}
    for split, part in (("train", texts[:documents]), ("heldout", texts[documents:])):
        writer = ShardWriter(path, f"{split}-00000", token_dtype(tokenizer.get_vocab_size()))
        writer.add(encode_batch(tokenizer, part))
        shards[split] = [writer.close()]
    write_json_atomic(path / "data.json", manifest_of(path, shards))
    return Corpus.open(path)


def tiny_task_folder(path: Path, task: Task, texts: Sequence[str] = (), max_len: int = 32, **fields: Any) -> Path:
    """A task folder with fresh weights, whose tokenizer knows the pieces of `texts` or of `tiny_texts`."""
    tokenizer = train_tokenizer(lambda: list(texts) or tiny_texts(50), "wordpiece", 256, shrink=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.tokenizer.json")
    tokenizer.save(str(file))
    config = Init(fields=TINY_MODEL | fields).encoder_config(tokenizer.get_vocab_size())
    return save_task_model(path, TaskModel(Encoder(config), task), file, max_len=max_len)


def tiny_run(data: Path, out: Path, steps: int = 6, **fields: Any) -> RunConfig:
    """A run of seconds on a tiny corpus; `fields` are those of `RunConfig` or of its one `Stage`."""
    stage = {name: fields.pop(name) for name in list(fields) if name in Stage.__dataclass_fields__}
    defaults: dict[str, Any] = {
        "model": Init(fields=TINY_MODEL),
        "sampling": Sampling(max_len=32, batch_tokens=512, micro_tokens=160, workers=0),
        "budget": Budget(steps=steps),
    }
    own: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "checkpoint_every": 3,
        "eval_tokens": 512,
        "threads": 1,
    }
    return RunConfig(data=str(data), out=str(out), stages=(Stage(**(defaults | stage)),), **(own | fields))


def losses(run: Path) -> list[float]:
    """The training loss of every step that a run recorded."""
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def log_metrics(run: Path) -> list[MetricsLog]:
    """Hooks that record metrics.jsonl and print nothing."""
    from terrazzo.train.state import latest_checkpoint

    checkpoint = latest_checkpoint(run)
    return [MetricsLog(run / "metrics.jsonl", checkpoint.counters.total_steps if checkpoint else 0)]


def check_method(folder: Path, steps: int = 40, learns: float = 0.3, **stage: Any) -> None:
    """Train a tiny encoder with one method (fields of `Stage`) and hold it to what every method promises.

    It learns (the loss falls by at least `learns` nats), twice gives the same bits, goes on from a checkpoint to the
    same bits, and its config survives JSON.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    corpus = tiny_corpus(folder / "data")
    whole = tiny_run(corpus.path, folder / "whole", steps=steps, checkpoint_every=steps // 2, keep=2, **stage)
    model = load_model(_trained(whole))
    course = losses(folder / "whole")
    assert sum(course[:5]) / 5 - sum(course[-5:]) / 5 >= learns, f"does not learn: {course[:5]} ... {course[-5:]}"
    record = json.loads(json.dumps(read_run(folder / "whole")["config"]))
    assert resolve(record) == whole, "the config does not survive JSON"

    interrupted = tiny_run(corpus.path, folder / "parts", steps=steps, checkpoint_every=steps // 2, keep=2, **stage)
    _trained(interrupted)
    newest = sorted((folder / "parts" / "checkpoints").iterdir())[-1]
    newest.rename(folder / "gone")
    (folder / "parts" / "model").rename(folder / "model-gone")
    resumed = load_model(_trained(interrupted, resume=True))
    assert losses(folder / "parts") == course, "resuming changes the losses"
    for (name, a), b in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"resuming changes {name}"


def start_ranks(
    config: RunConfig, ranks: int = 2, resume: bool = False, workload: Workload | None = None
) -> list[BaseProcess]:
    """Begin a run on `ranks` processes of this machine that talk through gloo, as torchrun would; one runs alone.

    They are forked from a server that has imported everything, which takes milliseconds after the first time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["terrazzo.testing", "torch._dynamo"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    if ranks > 1:
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started: list[BaseProcess] = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        given = (config, workload, resume, {**shared, **own})
        process = context.Process(target=_run_rank, args=given, daemon=True)
        process.start()
        started.append(process)
    return started


def train_on_ranks(config: RunConfig, ranks: int = 2, resume: bool = False, workload: Workload | None = None) -> None:
    """Train on several processes and wait for them.

    Raises:
        AssertionError: one of them failed; its traceback is on standard error.
    """
    started = start_ranks(config, ranks, resume, workload)
    for process in started:
        process.join()
    statuses = [process.exitcode for process in started]
    assert not any(statuses), f"exit statuses of the ranks: {statuses}"


def _run_rank(config: RunConfig, workload: Workload | None, resume: bool, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    train(config, workload=workload, resume=resume, hooks=log_metrics)


def _trained(config: RunConfig, resume: bool = False) -> Path:
    final = train(config, resume=resume, hooks=log_metrics)
    assert final is not None, "the run was interrupted"
    return final
