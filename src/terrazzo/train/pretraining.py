"""Pretraining on a corpus: the workload of runs that learn from text alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.checkpoint import empty_model, load_model, save_model, write_model
from terrazzo.data import (
    Corpus,
    Stream,
    evaluation_batches,
    num_predictions,
    pieces_for_tokens,
    word_start_table,
)
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM, training_flops
from terrazzo.objectives import check_direction
from terrazzo.packed import Packed
from terrazzo.provenance import write_json_atomic
from terrazzo.train.check import check_fit, check_schedules
from terrazzo.train.distributed import Ranks
from terrazzo.train.evaluation import evaluate
from terrazzo.train.run import RunConfig
from terrazzo.train.samples import fill_mask_samples
from terrazzo.train.sources import build_model, check_source
from terrazzo.train.stage import Sampling
from terrazzo.train.workload import StageStart


class Pretraining:
    """The workload of a corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    @property
    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def describe(self) -> Mapping[str, Any]:
        """Nothing beyond its kind: the data folder says the rest."""
        return {"kind": "pretraining"}

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse what any stage cannot do, as far as that shows before training.

        Raises:
            InputError: naming the stage's field and the mend.
        """
        corpus = self.corpus
        encoder: EncoderConfig | None = None
        for stage in config.stages:
            encoder, final = check_source(stage.model, corpus, encoder)
            stage_stream(corpus, stage.sampling, config.seed)
            if final:
                check_direction(stage.objective, encoder)
                check_fit(encoder, stage.sampling, ranks, dtype == torch.bfloat16)
            objective = stage.objective.build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
            check_schedules(stage, objective, empty_model(encoder))

    def begin(self, start: StageStart) -> PretrainingStage:
        """The stage's model, stream and held-out batches.

        Raises:
            InputError: the stage cannot be begun.
        """
        return PretrainingStage(self.corpus, start)

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """Write the final model folder and its sample predictions."""
        assert isinstance(model, MaskedLM)
        save_model(run / "model", model, self.corpus.path / "tokenizer.json", provenance)
        write_json_atomic(run / "samples.json", fill_mask_samples(model, self.corpus))


class PretrainingStage:
    """One stage on a corpus.

    Raises:
        InputError: the stage cannot be begun.
    """

    counted = "masked"

    def __init__(self, corpus: Corpus, start: StageStart) -> None:
        sampling = start.stage.sampling
        self.corpus, self.step_tokens = corpus, float(sampling.batch_tokens)
        self.objective = start.stage.objective.build(
            corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer)
        )
        self.stream = stage_stream(corpus, sampling, start.seed)
        previous = start.previous
        assert previous is None or isinstance(previous, MaskedLM)
        self.model = build_model(start.stage.model, corpus, previous, start.resumed)
        self.config = self.model.config
        if sampling.micro_tokens is None:
            sampling = dataclasses.replace(sampling, micro_tokens=start.micro_tokens)
        self.micro_tokens = check_fit(self.config, sampling, start.ranks, start.bf16)
        self.heldout = evaluation_batches(
            corpus.heldout,
            corpus.special,
            max_len=sampling.max_len,
            objective=self.objective,
            micro_tokens=self.micro_tokens,
            max_tokens=start.config.eval_tokens,
        )
        self.step_words = f"{self.stream.pieces_per_step} pieces (about {sampling.batch_tokens} tokens)"

    def evaluate(self, module: nn.Module, ranks: Ranks, autocast: AbstractContextManager[None]) -> Mapping[str, float]:
        """Loss and accuracy on fixed held-out documents with fixed masks; the score is the loss, negated."""
        figures = evaluate(module, self.heldout, ranks, autocast)
        return {**figures, "score": -figures["heldout_loss"]}

    def flops(self, batches: Sequence[Packed]) -> float:
        """Operations of matrix products, the decoder's on masked tokens alone."""
        return sum(training_flops(self.config, batch.lengths, num_predictions(batch)) for batch in batches)

    def sources(self, step: int) -> list[str]:
        """Numbers of the documents that a step reads."""
        return [str(document) for document in self.stream.documents(step)]

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write a model folder's files."""
        write_model(folder, self.assemble(state), self.corpus.path / "tokenizer.json", provenance)

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """The tensors of a model folder."""
        return load_model(folder).state_dict()

    def assemble(self, state: Mapping[str, Tensor]) -> MaskedLM:
        """A model around gathered tensors, without a second copy of them."""
        model = empty_model(self.config)
        assert isinstance(model, MaskedLM)
        model.load_state_dict(state, assign=True)
        return model


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
