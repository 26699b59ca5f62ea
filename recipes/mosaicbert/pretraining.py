"""Pretrain an arm into a run folder: metrics.jsonl and a model folder at each checkpoint, for a suite to be tried on.

`python -m recipes.mosaicbert.pretraining SPEC.json RUN` runs one arm in a process of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from recipes.mosaicbert.arms import ARMS, OursLM, TransformersLM, encoder_config
from recipes.mosaicbert.training import Spec, Trainer, fixed_batches, heldout_loss
from terrazzo.checkpoint import load_model, save_model
from terrazzo.config import from_dict, to_dict
from terrazzo.data import Corpus
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.nn.flops import training_flops
from terrazzo.packed import Packed
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.train.metrics import MetricsLog

#: shares of the run at which its model is kept
CHECKPOINTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def pretrain(spec: Spec, run: Path, checkpoints: Sequence[float] = CHECKPOINTS) -> Path:
    """Train an arm into the run folder `run`, unless it is finished there; an unfinished one begins again.

    The seconds in metrics.jsonl are steps times `spec.step_seconds`, so that a busy machine does not move them.
    """
    if (run / "model").is_dir():
        return run
    shutil.rmtree(run, ignore_errors=True)
    corpus = Corpus.open(spec.data)
    write_json_atomic(run / "run.json", _record(spec, corpus))
    trainer, heldout = Trainer(spec.arm, corpus, spec.recipe, spec.seed), fixed_batches(corpus, spec.recipe)
    shape = encoder_config(ARMS[spec.arm], spec.recipe.shape, corpus)
    due = {math.ceil(spec.steps * share) for share in checkpoints}
    log, tokens, begin = MetricsLog(run / "metrics.jsonl"), 0, time.process_time()
    for step in range(1, spec.steps + 1):
        loss, batch = trainer.step(step / spec.steps)
        tokens += batch.num_tokens
        now = {"step": step, "tokens": tokens, "seconds": round(step * spec.step_seconds, 4)}
        flops = step_flops(spec, shape, batch)
        log.on_step({**now, "loss": loss, "flops": flops, "cpu_seconds": round(time.process_time() - begin, 3)})
        if step in due:
            log.on_evaluation({**now, "heldout_loss": heldout_loss(trainer.model, heldout)})
            export(trainer.model, run / "checkpoints" / f"step-{step:08d}", corpus)
    log.close()
    export(trainer.model, run / "model", corpus)
    return run


def _record(spec: Spec, corpus: Corpus) -> dict[str, object]:
    return {
        "format": "terrazzo-run-1",
        "config": to_dict(spec),
        "data_fingerprint": corpus.fingerprint,
        "provenance": provenance(),
    }


def step_flops(spec: Spec, shape: EncoderConfig, batch: Packed) -> float:
    """Operations of one training step the way the arm computes it."""
    arm, max_len = ARMS[spec.arm], spec.recipe.shape.max_len
    lengths = (max_len,) * batch.num_documents if arm.padded else batch.lengths
    assert batch.masked_M is not None
    return training_flops(shape, lengths, sum(lengths) if arm.dense_head else batch.masked_M.numel())


def export(model: nn.Module, folder: Path, corpus: Corpus) -> None:
    """Write an arm's model as a model folder."""
    save_model(folder, masked_lm(model), corpus.path / "tokenizer.json")


def masked_lm(model: nn.Module) -> MaskedLM:
    """The model of an arm as ours; transformers' goes through its files."""
    if isinstance(model, OursLM):
        return model.model
    assert isinstance(model, TransformersLM)
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        loaded = load_model(folder)
        assert isinstance(loaded, MaskedLM)
        return loaded


def main(spec_file: str, run: str) -> None:
    """Run the spec in one file into a run folder."""
    torch.set_num_threads(1)
    pretrain(from_dict(Spec, json.loads(Path(spec_file).read_text(encoding="utf-8")), spec_file), Path(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
