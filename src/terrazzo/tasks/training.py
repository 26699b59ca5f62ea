"""A labelled task as a workload of the training loop: packed steps over rows, evaluation by the task's own metric."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.checkpoint import load_config, load_model, without_values
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.nn.flops import forward_flops
from terrazzo.objectives import Supervised, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.adapters import (
    PACE_NAME,
    AdapterConfig,
    LoraConfig,
    PacedSupervised,
    add_adapters,
    merge_adapters,
    zero_shares,
)
from terrazzo.tasks.batches import by_budget, collate
from terrazzo.tasks.labelled import LabelledRows, RowStream
from terrazzo.tasks.model import (
    TaskModel,
    adapter_values,
    load_task_model,
    model_folder,
    save_task_model,
    write_task_model,
)
from terrazzo.tasks.task import Encoded, Result, Task
from terrazzo.tasks.token_rows import TokenRows
from terrazzo.train.check import check_fit, check_schedules
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.stage import FromFolder, Init, Sampling, Stage
from terrazzo.train.units import plural, whole
from terrazzo.train.workload import StageStart

Freeze = Literal["none", "embeddings", "encoder"]
#: Tokens of one forward pass of an evaluation, which keeps nothing for a backward pass.
EVALUATION_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class TaskWorkload:
    """A labelled task, ready to be trained; the stage's objective is a `SupervisedConfig`.

    Args:
        tokenizer: gives model-ready ids, special tokens included.
        train, dev: rows to learn from, and rows that score the model.
        max_len: tokens of a document that rows were cut to; task.json keeps it for predictions.
        batch_size: documents of an optimizer step.
        freeze: what stays as it is: nothing, the embeddings, or the whole encoder, which then runs without dropout.
        adapter: what is trained instead of the encoder, and merged into it at the end.
        initial: a model to begin with, instead of a fresh head on the encoder of the stage's model.
    """

    task: Task
    tokenizer: Tokenizer
    train: LabelledRows
    dev: LabelledRows
    max_len: int
    batch_size: int = 32
    freeze: Freeze = "none"
    adapter: AdapterConfig | None = None
    initial: TaskModel | None = None

    def __post_init__(self) -> None:
        for name, rows in (("train", self.train), ("eval", self.dev)):
            if not rows.flat:
                raise InputError(f"{name}: there are no rows")

    @cached_property
    def fingerprint(self) -> str:
        described = json.dumps(self.describe(), sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def describe(self) -> Mapping[str, Any]:
        """The task, its rows, and how its model is trained."""
        # where there are low-rank adapters or none, this is as it was before there were others
        lora = isinstance(self.adapter, LoraConfig)
        other = {} if self.adapter is None or lora else {"adapter": adapter_values(self.adapter)}
        return {
            "kind": "task",
            "task": to_dict(self.task),
            "train": {"rows": len(self.train.examples), "fingerprint": self.train.fingerprint},
            "eval": {"rows": len(self.dev.examples), "fingerprint": self.dev.fingerprint},
            "max_len": self.max_len,
            "batch_size": self.batch_size,
            "freeze": self.freeze,
            "lora": adapter_values(self.adapter) if lora else None,
            **other,
        }

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse what a stage cannot do, as far as that shows before training.

        Raises:
            InputError: naming the stage's field and the mend.
        """
        encoder: EncoderConfig | None = None
        for stage in config.stages:
            if not isinstance(stage.objective, SupervisedConfig):
                raise InputError(f"objective.kind {stage.objective.kind!r}: a labelled task takes 'supervised'")
            encoder = self._encoder_config(stage, encoder)
            check_fit(encoder, self.sampling(stage.sampling, ranks), ranks, dtype == torch.bfloat16)
            check_schedules(self._without_pace(stage), stage.objective, self.empty(encoder))
            self._try_loss(stage.objective, encoder)

    def begin(self, start: StageStart) -> TaskStage:
        """The stage's model, steps and evaluation.

        Raises:
            InputError: the stage cannot be begun.
        """
        return TaskStage(self, start)

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """Write the task folder RUN/model, adapters merged."""
        assert isinstance(model, TaskModel)
        if self.adapter is not None:
            merge_adapters(model.encoder)
        if self.adapter is not None and self.adapter.paced:
            provenance = {**provenance, "adapter": to_dict(self.adapter), "zeros": zero_shares(model.encoder)}
        with tokenizer_file(self.tokenizer) as file:
            save_task_model(run / "model", model, file, provenance, max_len=self.max_len)

    def model(self, start: StageStart) -> TaskModel:
        """The model that a stage begins with: the one before, or an encoder with a fresh head."""
        if start.previous is not None:
            assert isinstance(start.previous, TaskModel)
            return start.previous
        if self.initial is not None:
            return self.dressed(copy.deepcopy(self.initial))
        source = start.config.stages[0].model
        if isinstance(source, Init):
            return self.dressed(TaskModel(Encoder(source.encoder_config(self.tokenizer.get_vocab_size())), self.task))
        assert isinstance(source, FromFolder)
        loaded = load_model(model_folder(source.path))
        return self.dressed(TaskModel(loaded.encoder if isinstance(loaded, MaskedLM) else loaded, self.task))

    def empty(self, config: EncoderConfig) -> TaskModel:
        """A model without values, adapters included."""
        with without_values():
            return self.dressed(TaskModel(Encoder(config), self.task), empty=True)

    def dressed(self, model: TaskModel, empty: bool = False) -> TaskModel:
        """The model with its adapters, what is frozen marked as such."""
        if self.adapter is not None:
            add_adapters(model.encoder, self.adapter, empty)
        if self.freeze == "embeddings":
            model.encoder.embeddings.requires_grad_(False)
        if self.freeze == "encoder":
            model.encoder.requires_grad_(False)
            for module in model.encoder.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return model

    def sampling(self, sampling: Sampling, ranks: Ranks) -> Sampling:
        """What decides the micro-batch: a whole step's share if it fits, for steps differ in length."""
        longest = max(len(document.ids) for document in [*self.train.flat, *self.dev.flat])
        most = longest * -(-self.batch_size // ranks.world_size) * ranks.world_size
        return dataclasses.replace(sampling, max_len=max(3, longest), batch_tokens=most)

    def _without_pace(self, stage: Stage) -> Stage:
        """The stage without the schedule by which adapters prune, after a look at whether it can be pruned in."""
        if self.adapter is None or not self.adapter.paced:
            return stage
        kind = self.adapter.kind
        if PACE_NAME not in stage.schedules:
            raise InputError(f"schedules: adapter {kind!r} prunes on the way and needs {PACE_NAME}, a ramp from 0 to 1")
        if stage.patience is not None:
            raise InputError(f"patience {stage.patience}: adapter {kind!r} prunes up to the end of a run: leave it out")
        rest = {name: value for name, value in stage.schedules.items() if name != PACE_NAME}
        return dataclasses.replace(stage, schedules=rest)

    def _try_loss(self, options: SupervisedConfig, encoder: EncoderConfig) -> None:
        """Have the task refuse options that it does not take, on one document and a model of hardly any width."""
        small = encoder.replace(width=8, num_heads=1, depth=1, mlp_width=8, kept_heads=None, mlp_widths=None)
        document = min(self.train.flat, key=lambda document: len(document.ids))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            TaskModel(Encoder(small), self.task).task_loss(collate([document]), options)

    def _encoder_config(self, stage: Stage, previous: EncoderConfig | None) -> EncoderConfig:
        if previous is not None and stage.model.kind == "previous" and stage.model.transform is None:
            return previous
        if self.initial is not None:
            return self.initial.config
        if isinstance(stage.model, Init):
            return stage.model.encoder_config(self.tokenizer.get_vocab_size())
        if stage.model.transform is not None or not isinstance(stage.model, FromFolder):
            raise InputError(
                f"stages: model {stage.model!r}: a labelled task goes on from 'previous' without transform"
            )
        return load_config(model_folder(stage.model.path))


class TaskStage:
    """One stage of a labelled task.

    Raises:
        InputError: the stage cannot be begun.
    """

    counted = "predictions"

    def __init__(self, workload: TaskWorkload, start: StageStart) -> None:
        objective = start.stage.objective
        assert isinstance(objective, SupervisedConfig)
        self.workload, self.task, self.adapter = workload, workload.task, workload.adapter
        self.model = workload.model(start)
        paced = self.adapter is not None and self.adapter.paced
        self.objective: Supervised = PacedSupervised(objective, self.model.encoder) if paced else Supervised(objective)
        if start.resumed is not None:
            self.model.load_state_dict(_stored(start.resumed))
        self.rows = TokenRows.narrow(self.model, [*workload.train.flat, *workload.dev.flat])
        self.stream = RowStream(self.rows.renumbered(workload.train.flat), workload.batch_size, start.seed)
        sampling = workload.sampling(start.stage.sampling, start.ranks)
        if sampling.micro_tokens is None:
            sampling = dataclasses.replace(sampling, micro_tokens=start.micro_tokens)
        self.micro_tokens = check_fit(self.model.config, sampling, start.ranks, start.bf16)
        self.step_tokens = float(self.stream.lengths.mean() * self.stream.pieces_per_step)
        self.step_words = self._step_words()
        self.passes = self.adapter.passes if self.adapter is not None else _passes(self.model)
        self.dev = self.rows.renumbered(workload.dev.flat)
        self.dev_batches = _dev_batches(self.dev, max(EVALUATION_TOKENS, self.micro_tokens))

    def _step_words(self) -> str:
        table, used = self.model.encoder.embeddings.tokens.weight, len(self.rows.used_U)
        narrow = table.requires_grad and used < len(self.rows.table_VD)
        rows = f"of the token table only the {whole(used)} rows in use, " if narrow else ""
        return f"{rows}{plural(self.stream.pieces_per_step, 'document')} (about {self.step_tokens:.0f} tokens)"

    def evaluate(self, module: nn.Module, ranks: Ranks, autocast: AbstractContextManager[None]) -> Mapping[str, Any]:
        """The task's metrics on the rows that score the model, the one named by `metric` as `score`; the mean loss.

        While adapters are still to prune, the score is NaN: such a model must not count as the best.
        """
        outputs: dict[int, np.ndarray] = {}
        loss, weight = torch.zeros((), dtype=torch.float64, device=ranks.device), 0
        with autocast:
            for turn in range(-(-len(self.dev_batches) // ranks.world_size)):
                index = turn * ranks.world_size + ranks.rank
                chosen = self.dev_batches[min(index, len(self.dev_batches) - 1)]
                batch = collate([self.dev[i] for i in chosen]).to(ranks.device)
                given = module(batch, outputs=True)
                if index >= len(self.dev_batches):
                    continue
                outputs.update(zip(chosen.tolist(), self.task.split(given, batch), strict=True))
                if batch.labels_B is not None or batch.labels_M is not None:
                    part = self.task.loss(given, batch, self.objective.config)
                    loss, weight = loss + part.sum, weight + int(part.weight)
        total, count = ranks.sum(float(loss), weight)
        for others in ranks.gather(outputs):
            outputs.update(others)
        return {"heldout_loss": total / count if count else math.nan, **self._scores(outputs)}

    def _scores(self, outputs: Mapping[int, np.ndarray]) -> dict[str, Any]:
        rows, results, first = self.workload.dev, [], 0
        for example, documents in zip(rows.examples, rows.documents, strict=True):
            parts = [outputs[i] for i in range(first, first + len(documents))]
            unread = Result(error="the row cannot be read")
            results.append(self.task.decode(example, documents, parts) if documents else unread)
            first += len(documents)
        scores = self.task.score(rows.examples, results)
        settled = not isinstance(self.objective, PacedSupervised) or self.objective.settled
        return {**scores.values, "metric": scores.main, "score": scores.value if settled else math.nan}

    def flops(self, batches: Sequence[Packed]) -> float:
        """Operations of the encoder's matrix products, with as much of a backward pass as what is trained needs."""
        return sum(self.passes * forward_flops(self.model.config, batch.lengths) for batch in batches)

    def sources(self, step: int) -> list[str]:
        """Where the rows of a step stand."""
        rows = self.workload.train
        owners = np.repeat(np.arange(len(rows.examples)), [len(documents) for documents in rows.documents])
        chosen = np.unique(owners[self.stream.step(step).pieces])
        return [rows.examples[i].where or f"row {i}" for i in chosen]

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write a task folder's files; adapters stay apart."""
        workload = self.workload
        with tokenizer_file(workload.tokenizer) as file:
            write_task_model(
                folder,
                self.model,
                file,
                provenance,
                self.rows.widen(state),
                max_len=workload.max_len,
                adapter=workload.adapter,
            )

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """The tensors of a task folder, adapters included, as the model in training has them."""
        return self.rows.select(_stored(folder))

    def assemble(self, state: Mapping[str, Tensor]) -> TaskModel:
        """A model around gathered tensors, without a second copy of them."""
        model = self.workload.empty(self.model.config)
        model.load_state_dict(self.rows.widen(state), assign=True)
        return model


def _stored(folder: Path) -> Mapping[str, Tensor]:
    return load_task_model(folder, merge=False).model.state_dict()


@contextmanager
def tokenizer_file(tokenizer: Tokenizer) -> Iterator[Path]:
    """A tokenizer as a file, for as long as it takes to copy it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(str(file))
        yield file


def _dev_batches(documents: Sequence[Encoded], batch_tokens: int) -> list[np.ndarray]:
    """Which documents run together: those of like lengths, and those without an answer by themselves."""
    answered = np.array([document.label is not None for document in documents])
    lengths = np.array([len(document.ids) for document in documents])
    groups = [np.flatnonzero(answered), np.flatnonzero(~answered)]
    return [group[chosen] for group in groups for chosen in by_budget(lengths[group].tolist(), batch_tokens)]


def _passes(model: TaskModel) -> int:
    """Forward passes that a training step costs: 3 to train the encoder, 2 to train what is in it, 1 above it."""
    matrices = [parameter for parameter in model.encoder.blocks.parameters() if parameter.ndim > 1]
    trained = [parameter.requires_grad for parameter in matrices]
    return 3 if all(trained) else 2 if any(trained) else 1
