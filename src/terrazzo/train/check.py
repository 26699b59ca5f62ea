"""What a run would stumble over later, refused before its first step and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from terrazzo.checkpoint import empty_model
from terrazzo.data import Corpus, Stream, pieces_for_tokens, word_start_table
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.optim import Schedule, ScheduleConfig
from terrazzo.train.distributed import Ranks
from terrazzo.train.memory import choose_micro_tokens
from terrazzo.train.run import RunConfig
from terrazzo.train.sources import check_source
from terrazzo.train.stage import Sampling, Stage


def check_stages(config: RunConfig, corpus: Corpus, ranks: Ranks, bf16: bool) -> None:
    """Refuse what any stage cannot do, as far as that shows before training.

    Raises:
        InputError: naming the stage's field and the mend.
    """
    encoder: EncoderConfig | None = None
    for stage in config.stages:
        encoder, final = check_source(stage.model, corpus, encoder)
        stage_stream(corpus, stage.sampling, config.seed)
        if final:
            check_fit(encoder, stage.sampling, ranks, bf16)
        _check_schedules(stage, corpus, encoder)


def check_fit(encoder: EncoderConfig, sampling: Sampling, ranks: Ranks, bf16: bool) -> int:
    """The micro-batch in tokens for which a model fits in every rank's memory.

    Raises:
        InputError: it does not fit, or has too few positions for the stage's documents.
    """
    if encoder.positions == "learned" and sampling.max_len > encoder.max_len:
        raise InputError(
            f"sampling.max_len {sampling.max_len}: the model has {encoder.max_len} learned positions; lower it, or "
            f"start a model with model.fields.max_len={sampling.max_len}"
        )
    return choose_micro_tokens(encoder, sampling, ranks, bf16)


def stage_stream(corpus: Corpus, sampling: Sampling, seed: int) -> Stream:
    """The training stream of a stage.

    Raises:
        InputError: the corpus has less than one batch.
    """
    pieces = pieces_for_tokens(corpus.train, corpus.special, sampling.max_len, sampling.batch_tokens)
    try:
        return Stream(corpus.train, corpus.special, max_len=sampling.max_len, pieces_per_step=pieces, seed=seed)
    except InputError as error:
        raise InputError(f"sampling.batch_tokens {sampling.batch_tokens}: {error}") from None


def stage_schedules(stage: Stage) -> Mapping[str, ScheduleConfig]:
    """Every scheduled value of a stage; the learning rate always is one."""
    return {"lr": Schedule(), **stage.schedules}


def _check_schedules(stage: Stage, corpus: Corpus, encoder: EncoderConfig) -> None:
    objective: Any = stage.objective.build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
    with torch.device("meta"):
        group = stage.optimizer.build(empty_model(encoder)).param_groups[0]
    known = ["lr"]
    known += [f"objective.{name}" for name, value in vars(objective).items() if isinstance(value, float)]
    known += [f"optimizer.{name}" for name, value in group.items() if isinstance(value, float) and name != "base_lr"]
    for name in stage_schedules(stage):
        if name not in known:
            raise InputError(f"schedules.{name}: nothing of that name can be scheduled; known: {', '.join(known)}")
