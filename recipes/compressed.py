"""What the recipes of compression share: tasks to begin with at every tier, scores, training of models that prune."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from recipes.claims import Tier
from recipes.compressing import DENSE, Rows, dense_model
from recipes.runner import Context
from recipes.tuning import fine_tuned, minilm, untrained
from terrazzo.checkpoint import load_model, load_tokenizer
from terrazzo.compression import PruningWorkload
from terrazzo.compression.gradual import PROGRESS
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.batches import by_budget, collate
from terrazzo.tasks.choice import build_task
from terrazzo.tasks.finetune_config import FinetuneConfig, run_config, steps_of
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import LoadedTask, load_task_model, model_folder
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.training import TaskWorkload
from terrazzo.testing import log_metrics
from terrazzo.train import Budget, train
from terrazzo.train.workload import Workload

GLUE = "GLUE, https://gluebenchmark.com, with the labelled test files of MRPC and STS-B"
CLINC = "CLINC150, https://github.com/clinc/oos-eval"
#: What models are judged by, for each kind of task.
METRICS = {"label": "accuracy", "pair": "accuracy", "regression": "pearson"}
#: How tiny models of smoke tiers are fine-tuned.
TINY: Mapping[str, Any] = {"lr": (1e-2,), "epochs": 6.0, "batch_size": 8}
_NOUNS = {"cat": "animal", "dog": "animal", "river": "thing", "engine": "thing"}


@dataclass(frozen=True, kw_only=True)
class Start:
    """A task, the encoder before it, and its fine-tuned models.

    Args:
        base: the folder of the encoder that was not fine-tuned.
        dense: the task folder of a seed, fine-tuned if no earlier call did.
        threads: of all trainings; None leaves them to the environment.
    """

    name: str
    kind: str
    base: Path
    rows: Rows
    dense: Callable[[int], Path]
    threads: int | None

    def options(self, out: Path, **fields: Any) -> FinetuneConfig:
        """A fine-tuning of one seed that ends with its last model."""
        common = {"task": self.kind, "seeds": 1, "keep_best": False, "threads": self.threads, "device": "cpu"}
        return FinetuneConfig(model=str(self.base), out=str(out), **{**common, **fields})


def begin(tier: Tier, name: str, context: Context, proof: int | None = None) -> Start:
    """A task of `compressing.DENSE` on MiniLM, or in the smoke tier a tiny stand-in.

    Args:
        proof: judge by so many of the rows, drawn once; None by all.

    Raises:
        InputError: a data set or the model is missing.
    """
    if tier == "smoke":
        return _tiny(name, context)
    root = (context.data("clinc150", CLINC) if name == "clinc150" else context.data("glue", GLUE)).parent
    rows = DENSE[name].read(root)

    @cache
    def dense(seed: int) -> Path:
        return dense_model(name, rows, context.work, context.log, seed, threads=1)

    judged = replace(rows, proof=drawn(rows.proof, proof))
    return Start(name=name, kind=DENSE[name].kind, base=minilm(), rows=judged, dense=dense, threads=1)


def _tiny(name: str, context: Context) -> Start:
    kind, draw = DENSE[name].kind, random.Random(name)
    made = []
    for _ in range(48):
        first, second = draw.choices(list(_NOUNS), k=2)
        second = draw.choice((first, second))
        text, other = f"the {first} hums at night", f"a {second} sings"
        if kind == "label":
            made.append(Example(text=text, target=_NOUNS[first]))
        else:
            same: str | float = float(first == second) if kind == "regression" else f"same-{first == second}"
            made.append(Example(text=text, other=other, target=same))
    base = untrained(context.work / "base", [f"the {noun} hums at night. a {noun} sings" for noun in _NOUNS])
    rows = Rows(train=made[:32], dev=made[32:], proof=made[32:])

    @cache
    def dense(seed: int) -> Path:
        options = start.options(context.work / f"dense-{name}-{seed}", seed=seed, **TINY)
        return fine_tuned(options, rows.train, rows.dev, context.log)[seed]

    start = Start(name=name, kind=kind, base=base, rows=rows, dense=dense, threads=None)
    return start


def drawn(rows: Sequence[Example], count: int | None, seed: int = 0) -> list[Example]:
    """So many of the rows at random, all where there are no more."""
    return list(rows) if count is None or count >= len(rows) else random.Random(seed).sample(list(rows), count)


def points(model: TaskModel, like: LoadedTask, rows: Sequence[Example]) -> float:
    """How good a model with the tokenizer of `like` is on rows: accuracy or Pearson's correlation, times 100."""
    results = Predictor(model, like.tokenizer, like.max_len).predict(rows)
    return 100 * model.task.score(rows, results).values[METRICS[model.task.kind]]


def folder_points(folder: Path, rows: Sequence[Example]) -> float:
    """`points` of a task folder."""
    loaded = load_task_model(folder)
    return points(loaded.model, loaded, rows)


def fresh(start: Start, rows: Sequence[Example], seed: int) -> LoadedTask:
    """The encoder before any fine-tuning, with a head for the rows' task drawn from `seed`."""
    folder = model_folder(start.base)
    loaded = load_model(folder)
    encoder = loaded.encoder if isinstance(loaded, MaskedLM) else loaded
    torch.manual_seed(seed)
    model = TaskModel(encoder, build_task(start.kind, rows, {}))
    config = encoder.config
    return LoadedTask(model=model, tokenizer=load_tokenizer(folder, config), max_len=config.max_len)


def around(encoder: Encoder, dense: TaskModel) -> TaskModel:
    """A task's model with another encoder and the same head."""
    model = TaskModel(encoder, dense.task)
    model.head.load_state_dict(dense.head.state_dict())
    return model.eval()


def packed_rows(like: LoadedTask, rows: Sequence[Example], batch_tokens: int = 8192) -> Iterator[Packed]:
    """Rows as batches with their answers, those of like lengths together."""
    documents = LabelledRows.encode(like.model.task, rows, like.tokenizer, like.max_len).flat
    for chosen in by_budget([len(document.ids) for document in documents], batch_tokens):
        yield collate([documents[i] for i in chosen])


def workload(
    like: LoadedTask, train: Sequence[Example], dev: Sequence[Example], initial: TaskModel, batch_size: int
) -> TaskWorkload:
    """Rows to train `initial` on, read as `like` reads them."""
    encoded = [LabelledRows.encode(initial.task, rows, like.tokenizer, like.max_len) for rows in (train, dev)]
    return TaskWorkload(
        task=initial.task,
        tokenizer=like.tokenizer,
        train=encoded[0],
        dev=encoded[1],
        max_len=like.max_len,
        batch_size=batch_size,
        initial=initial,
    )


def trained(options: FinetuneConfig, work: Workload, documents: int, log: Callable[[str], None]) -> Path:
    """The task folder of one run at the first learning rate; a finished one is not repeated, a broken one goes on.

    Args:
        documents: of the training rows.

    Raises:
        KeyboardInterrupt: training was stopped.
    """
    out = Path(options.out)
    if (out / "model").is_dir():
        return out / "model"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    budget = Budget(steps=steps_of(options, documents))
    run = run_config(options, documents, options.lr[0], options.seed, options.out, budget)
    stage = run.stages[0]
    if isinstance(work, PruningWorkload) and work.schedule is not None:
        stage = replace(stage, schedules={**stage.schedules, **PROGRESS})
    run = replace(run, stages=(stage,))
    if train(run, workload=work, resume=(out / "run.json").is_file(), hooks=log_metrics) is None:
        raise KeyboardInterrupt
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    log(f"{out.name}: trained")
    return out / "model"
