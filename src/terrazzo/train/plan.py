"""What a run will take, before it runs: steps, tokens, FLOPs, hours, memory, money.

On this machine the step time is measured: a probe trains a throw-away model for a few micro-batches drawn from the
data's own lengths. For another machine it follows from its peak and an assumed share of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from terrazzo.data import Corpus, Loader, Stream, pieces_for_tokens, word_start_table
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM, parameter_count, training_flops
from terrazzo.train.distributed import Ranks
from terrazzo.train.hardware import compute_dtype, measured_peak
from terrazzo.train.memory import available_bytes, choose_micro_tokens, estimate
from terrazzo.train.run import RunConfig
from terrazzo.train.sources import build_model
from terrazzo.train.stage import Init, Stage

#: Dense bf16 peak of accelerators by vendor datasheets, FLOP/s.
PEAKS = {"h200": 989.5e12, "h100": 989.5e12, "a100": 312e12}
#: Share of the peak assumed for a machine that is not here.
ASSUMED_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The forecast of one stage.

    Args:
        step_seconds: of one optimizer step; seconds: of the whole stage without evaluations.
        share_of_peak: matrix-product FLOPs over peak; measured says whether step and peak were measured here.
        memory_bytes: of one process; available_bytes: free here now.
        epochs: passes over the training documents.
    """

    name: str
    parameters: int
    steps: int
    tokens: float
    epochs: float
    flops: float
    step_seconds: float
    seconds: float
    share_of_peak: float
    peak: float
    measured: bool
    micro_tokens: int
    memory_bytes: int
    available_bytes: int
    cost: float | None


def plan(config: RunConfig, hardware: str | None = None, probe_seconds: float = 10.0) -> list[Plan]:
    """Forecast every stage of a run.

    Args:
        hardware: "h200", "h100" or "a100" to forecast one such GPU from its datasheet; None measures this machine.
        probe_seconds: about how long each stage's measurement may take.

    Raises:
        InputError: unknown hardware, or whatever the run itself would refuse.
    """
    if hardware is not None and hardware not in PEAKS:
        raise InputError(f"hardware {hardware!r}: known: {', '.join(PEAKS)}; leave it out to measure this machine")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    corpus = Corpus.open(config.data)
    model: EncoderConfig | None = None
    plans = []
    for stage in config.stages:
        model = _encoder_config(stage, corpus, model)
        plans.append(_plan_stage(config, stage, corpus, model, hardware, probe_seconds))
    return plans


def _encoder_config(stage: Stage, corpus: Corpus, previous: EncoderConfig | None) -> EncoderConfig:
    if isinstance(stage.model, Init):
        return stage.model.encoder_config(corpus.vocab_size)
    if stage.model.kind == "previous" and stage.model.transform is None:
        assert previous is not None
        return previous
    before = MaskedLM(previous) if previous is not None and stage.model.kind == "previous" else None
    return build_model(stage.model, corpus, before, None).config


def _plan_stage(
    config: RunConfig, stage: Stage, corpus: Corpus, model: EncoderConfig, hardware: str | None, probe_seconds: float
) -> Plan:
    device = torch.device("cuda" if hardware or (config.device != "cpu" and torch.cuda.is_available()) else "cpu")
    here = hardware is None
    dtype = compute_dtype(config.precision, device) if here else torch.bfloat16
    bf16 = dtype == torch.bfloat16
    sampling = stage.sampling
    pieces = pieces_for_tokens(corpus.train, corpus.special, sampling.max_len, sampling.batch_tokens)
    stream = Stream(corpus.train, corpus.special, max_len=sampling.max_len, pieces_per_step=pieces, seed=config.seed)
    micro = (
        choose_micro_tokens(model, sampling, Ranks(0, 1, device), bf16)
        if here
        else max(sampling.max_len, sampling.micro_tokens or sampling.batch_tokens)
    )
    lengths = np.concatenate([stream.step(t).lengths for t in range(4)])
    step_tokens = float(lengths.sum() / 4)
    rate = getattr(stage.objective, "rate", 1.0)
    step_flops = training_flops(model, lengths, round(rate * lengths.sum())) / 4
    if here:
        peak = measured_peak(device, dtype)
        step_seconds = _probe(config, stage, corpus, model, stream, micro, device, dtype, probe_seconds)
    else:
        assert hardware is not None
        peak = PEAKS[hardware]
        step_seconds = step_flops / (peak * ASSUMED_SHARE)
    steps = _steps(stage, step_tokens, step_seconds)
    seconds = steps * step_seconds
    price = config.price_per_hour
    return Plan(
        name=stage.name,
        parameters=parameter_count(model),
        steps=steps,
        tokens=steps * step_tokens,
        epochs=steps * stream.pieces_per_step / len(stream.pieces),
        flops=steps * step_flops,
        step_seconds=step_seconds,
        seconds=seconds,
        share_of_peak=step_flops / (step_seconds * peak),
        peak=peak,
        measured=here,
        micro_tokens=micro,
        memory_bytes=estimate(model, device, bf16).total(micro),
        available_bytes=available_bytes(device) if here else 0,
        cost=None if price is None else price * seconds / 3600,
    )


def _steps(stage: Stage, step_tokens: float, step_seconds: float) -> int:
    budget = stage.budget
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / step_tokens))
    assert budget.seconds is not None
    return max(1, math.floor(budget.seconds / step_seconds))


def _probe(
    config: RunConfig,
    stage: Stage,
    corpus: Corpus,
    encoder: EncoderConfig,
    stream: Stream,
    micro_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    probe_seconds: float,
) -> float:
    """Seconds of one optimizer step: the median micro-batch times their number, and the median update."""
    objective = stage.objective.build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
    model = MaskedLM(encoder).to(device).train()
    optimizer = stage.optimizer.build(model)
    loader = Loader(stream, objective, micro_tokens=micro_tokens, workers=0)
    micro_times: list[float] = []
    update_times: list[float] = []
    micro_counts: list[int] = []
    deadline = time.perf_counter() + probe_seconds
    while len(update_times) < 2 or (time.perf_counter() < deadline and len(update_times) < 20):
        step = next(loader)
        micro_counts.append(len(step.batches))
        # A long step is sampled: five of its micro-batches say what the others take.
        for batch in step.batches[:5]:
            begin = _now(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = objective.loss(model, batch.to(device))
            (loss.sum / float(loss.weight)).backward()
            micro_times.append(_now(device) - begin)
        begin = _now(device)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_times.append(_now(device) - begin)
    warm = micro_times[len(micro_times) // 4 :], update_times[1:]
    return float(np.median(warm[0]) * np.mean(micro_counts) + np.median(warm[1]))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
