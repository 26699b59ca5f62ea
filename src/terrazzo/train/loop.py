"""The one training loop. Methods are data for it: objectives, samplers, optimizers, schedules, transforms."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.data import Corpus, Loader, evaluation_batches, word_start_table
from terrazzo.data.keyed import derive
from terrazzo.errors import RunError
from terrazzo.nn import EncoderConfig, MaskedLM, parameter_count, training_flops
from terrazzo.packed import Packed
from terrazzo.train.check import check_fit, check_stages, stage_schedules, stage_stream
from terrazzo.train.distributed import Ranks, StepModule, gradient_sync, joined, wrap
from terrazzo.train.evaluation import evaluate
from terrazzo.train.folder import begun, check_run, disk_errors, finish_run
from terrazzo.train.hardware import compute_dtype, measured_peak
from terrazzo.train.hooks import Hook
from terrazzo.train.run import RunConfig
from terrazzo.train.sources import build_model
from terrazzo.train.state import (
    Checkpoint,
    Counters,
    assemble,
    restore_optimizer,
    save_checkpoint,
    step_module,
    whole_model,
    whole_optimizer,
)

#: Weight of the past in the smoothed loss that divergence is judged by.
SMOOTHING = 0.95


@dataclass
class Session:
    """What every stage of a run needs."""

    config: RunConfig
    corpus: Corpus
    ranks: Ranks
    dtype: torch.dtype
    peak: float
    resumed: Checkpoint | None
    provenance: dict[str, Any] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = Path(self.config.out)
        self.counters = self.resumed.counters if self.resumed else Counters()
        self.last_checkpoint = self.resumed.path if self.resumed else None

    def autocast(self) -> torch.autocast:
        """bf16 products where the run computes in bf16."""
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def tell(self, method: str, value: Any) -> None:
        """Call one method of every hook."""
        for hook in self.hooks:
            getattr(hook, method)(value)


def train(
    config: RunConfig, *, resume: bool = False, hooks: Callable[[Path], Sequence[Hook]] | None = None
) -> Path | None:
    """Run all stages and write RUN/model; the same code for one process and for torchrun's ranks.

    Args:
        resume: go on from the newest checkpoint in `config.out`; the config must be the one that began the run.
        hooks: makes rank 0's listeners for the run folder, given it.

    Returns:
        The final model folder, or None after SIGTERM or Ctrl-C, when the last checkpoint holds the state.

    Raises:
        InputError: the config, the data or the run folder cannot be used; nothing has been written then.
        RunError: the run cannot go on; the message names the step and the last good checkpoint.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with joined(config.device) as ranks, disk_errors(Path(config.out)):
        corpus = Corpus.open(config.data, verify=ranks.is_main)
        record, checkpoint = check_run(config, corpus, resume)
        dtype = compute_dtype(config.precision, ranks.device)
        check_stages(config, corpus, ranks, dtype == torch.bfloat16)
        session = Session(config, corpus, ranks, dtype, measured_peak(ranks.device, dtype), checkpoint)
        stage = StageRun(session, None)
        with begun(session.run, record, ranks) as session.provenance, contextlib.ExitStack() as stack:
            if hooks is not None and ranks.is_main:
                session.hooks = hooks(session.run)
                for hook in session.hooks:
                    stack.callback(hook.close)
            stack.enter_context(signals(session))
            model = _run_stages(session, stage)
            return finish_run(session, model) if model is not None else None


def _run_stages(session: Session, stage: StageRun) -> MaskedLM | None:
    counters = session.counters
    while (model := stage.run()) is not None and counters.stage + 1 < len(session.config.stages):
        counters.next_stage()
        stage = StageRun(session, model)
    return model


class StageRun:
    """One stage in the making: model, stream, objective and optimizer, and the steps over them.

    Args:
        session: its counters say which stage, and how much of it is done.
        previous: the model of the stage before, in this process; None at the start and after resuming.

    Raises:
        InputError: the stage cannot be begun.
    """

    def __init__(self, session: Session, previous: MaskedLM | None) -> None:
        self.session, self.counters = session, session.counters
        self.stage = stage = session.config.stages[self.counters.stage]
        corpus, ranks = session.corpus, session.ranks
        self.seed = derive(session.config.seed, "stage", self.counters.stage)
        self.objective = stage.objective.build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
        self.schedules = stage_schedules(stage)
        self.stream = stage_stream(corpus, stage.sampling, self.seed)
        resumed = session.resumed if previous is None else None
        torch.manual_seed(derive(self.seed, "init") % 2**63)
        model = build_model(stage.model, corpus, previous, resumed.path if resumed else None)
        self.config: EncoderConfig = model.config
        self.micro_tokens = self.counters.micro_tokens = self._micro_tokens()
        self.heldout = evaluation_batches(
            corpus.heldout,
            corpus.special,
            max_len=stage.sampling.max_len,
            objective=self.objective,
            micro_tokens=self.micro_tokens,
            max_tokens=session.config.eval_tokens,
        )
        self.module = wrap(StepModule(model.to(ranks.device), self.objective), ranks, session.config.distributed)
        self.module.train()
        if session.config.compile:
            step_module(self.module).model.encoder.compile_blocks()
        self.optimizer = stage.optimizer.build(step_module(self.module).model)
        if resumed:
            restore_optimizer(self.optimizer, resumed.optimizer_state())
        self.clock = time.perf_counter()
        self.step_seconds: deque[float] = deque(maxlen=5)
        self.evaluation_seconds = self.checkpoint_seconds = 0.0

    def _micro_tokens(self) -> int:
        """What the stage was begun with, so that resuming rounds alike; or what every rank has room for."""
        sampling = self.stage.sampling
        if sampling.micro_tokens is None:
            sampling = dataclasses.replace(sampling, micro_tokens=self.counters.micro_tokens)
        return check_fit(self.config, sampling, self.session.ranks, self.session.dtype == torch.bfloat16)

    def run(self) -> MaskedLM | None:
        """Train to the end of the budget; None if a signal ended it before."""
        session, counters = self.session, self.counters
        session.tell("on_message", self._opening())
        self.clock = time.perf_counter()
        with self._loader() as loader:
            while counters.progress < 1:
                session.tell("on_step", self._step(loader))
                if self._anyone_stopped():
                    self._checkpoint()
                    session.tell("on_message", f"stopped by {' '.join(session.stop) or 'another rank'}")
                    return None
                if counters.progress < 1 and self._evaluation_due():
                    self._evaluate()
                if counters.progress < 1 and counters.total_steps % session.config.checkpoint_every == 0:
                    self._checkpoint()
        if counters.evaluated < 1:
            self._evaluate()
        self._checkpoint()
        return assemble(self.config, whole_model(self.module))

    def _loader(self) -> Loader:
        return Loader(
            self.stream,
            self.objective,
            rank=self.session.ranks.rank,
            world_size=self.session.ranks.world_size,
            micro_tokens=self.micro_tokens,
            workers=self.stage.sampling.workers,
            start_step=self.counters.step,
        )

    def _step(self, loader: Loader) -> dict[str, Any]:
        session, counters = self.session, self.counters
        begin = time.perf_counter()
        counters.progress = self._coming_progress()
        self._apply_schedules(counters.progress)
        batches = next(loader)
        torch.manual_seed(derive(self.seed, "dropout", counters.step, session.ranks.rank) % 2**63)
        weight, num_micro = session.ranks.sum(batches.weight, len(batches.batches))
        sums = self._accumulate(batches.batches, weight)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, correct, grad_norm = torch.stack([*sums, norm]).tolist()  # the step's one wait for the device
        loss_sum, correct = session.ranks.sum(loss_sum, correct)
        loss = loss_sum / weight
        self._watch(loss, grad_norm)
        seconds = time.perf_counter() - begin
        self._count(batches.num_tokens, seconds)
        flops = sum(training_flops(self.config, b.lengths, _num_masked(b)) for b in batches.batches)
        (flops,) = session.ranks.sum(flops)
        return {
            "step": counters.total_steps,
            "stage": self.stage.name,
            "progress": counters.progress,
            "loss": loss,
            "accuracy": correct / weight,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm,
            "tokens": counters.tokens,
            "step_tokens": batches.num_tokens,
            "masked": int(weight),
            "seconds": counters.seconds,
            "step_seconds": seconds,
            "tokens_per_second": batches.num_tokens / seconds,
            "flops": flops,
            "peak_fraction": flops / (seconds * session.peak * session.ranks.world_size),
            "padding_saved": _padding_saved(batches.batches),
            "micro_batches": int(num_micro),
        }

    def _accumulate(self, batches: list[Packed], weight: float) -> tuple[Tensor, Tensor]:
        """Backward passes of all micro-batches; the loss is the sum over masked tokens over their global number."""
        ranks = self.session.ranks
        loss_sum = torch.zeros((), device=ranks.device)
        correct = torch.zeros((), device=ranks.device)
        for index, batch in enumerate(batches):
            with gradient_sync(self.module, enabled=index == len(batches) - 1):
                with self.session.autocast():
                    loss, logs = self.module(batch.to(ranks.device))
                # DDP and FSDP2 average over ranks; the sum is wanted.
                (loss * (ranks.world_size / weight)).backward()
            loss_sum += loss.detach()
            correct += logs["correct"]
        return loss_sum, correct

    def _clip(self) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        limit = self.stage.clip_norm if self.stage.clip_norm is not None else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm

    def _apply_schedules(self, progress: float) -> None:
        for name, schedule in self.schedules.items():
            value, (room, _, key) = schedule(progress), name.partition(".")
            if room == "objective":
                setattr(self.objective, key, value)
                continue
            for group in self.optimizer.param_groups:
                group[key or "lr"] = value if key else group["base_lr"] * value

    def _coming_progress(self) -> float:
        """Share of the budget spent when the coming step is done, exactly 1 for the last one.

        That is the one after which less than half a step is left.
        """
        spent, step, total = self._budget()
        return 1.0 if spent + 1.5 * step >= total else max(self.counters.progress, (spent + step) / total)

    def _budget(self) -> tuple[float, float, float]:
        """What is spent, what the coming step will take, and what there is; rank 0's clock counts for all."""
        budget, counters = self.stage.budget, self.counters
        if budget.steps is not None:
            return counters.step, 1, budget.steps
        if budget.tokens is not None:
            return counters.stage_tokens, self.stage.sampling.batch_tokens, budget.tokens
        assert budget.seconds is not None
        closing = self.evaluation_seconds + self.checkpoint_seconds
        times = counters.stage_seconds + closing, statistics.median(self.step_seconds or [0.0])
        spent, step = self.session.ranks.sum(*(times if self.session.ranks.is_main else (0.0, 0.0)))
        return spent, step, budget.seconds

    def _count(self, tokens: int, seconds: float) -> None:
        counters = self.counters
        counters.step += 1
        counters.total_steps += 1
        counters.tokens += tokens
        counters.stage_tokens += tokens
        self.step_seconds.append(seconds)
        self._elapse()

    def _elapse(self) -> float:
        """Book the time since the last call, so that budget and metrics count all of it."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.counters.seconds += seconds
        self.counters.stage_seconds += seconds
        return seconds

    def _watch(self, loss: float, grad_norm: float) -> None:
        """Stop the run at a loss that is not a number, or that has risen for good."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._broken(f"the loss is {loss}, the gradient norm {grad_norm}", self.counters.step)
        counters, past = self.counters, self.counters.smoothed_loss
        smoothed = loss if past is None else SMOOTHING * past + (1 - SMOOTHING) * loss
        lowest = smoothed if counters.lowest_loss is None else min(smoothed, counters.lowest_loss)
        if smoothed - lowest > self.session.config.divergence:
            what = f"the loss diverged: its running mean {smoothed:.3f} is {smoothed - lowest:.2f} above its lowest"
            raise self._broken(what, counters.step)
        counters.smoothed_loss, counters.lowest_loss = smoothed, lowest

    def _broken(self, what: str, step: int) -> RunError:
        documents = self.stream.documents(step)
        shown = ", ".join(str(d) for d in documents[:20]) + (", ..." if len(documents) > 20 else "")
        number = self.counters.total_steps - self.counters.step + step + 1
        return RunError(
            f"step {number}: {what}. Training documents of this step: {shown} ({len(documents)} in all). "
            f"Last good checkpoint: {self.session.last_checkpoint or 'none yet'}. Lower optimizer.lr, or lengthen the "
            "warm-up (schedules.lr.warmup)"
        )

    def _evaluation_due(self) -> bool:
        every, counters = self.session.config.eval_every, self.counters
        if every is not None:
            return counters.total_steps % every == 0
        return math.floor(10 * counters.progress) > math.floor(10 * counters.evaluated)

    def _evaluate(self) -> None:
        session, counters = self.session, self.counters
        result = evaluate(self.module, self.heldout, session.ranks, session.autocast())
        counters.evaluated = counters.progress
        self.evaluation_seconds = self._elapse()
        line = {"step": counters.total_steps, "stage": self.stage.name, "tokens": counters.tokens}
        session.tell("on_evaluation", {**line, "seconds": counters.seconds, **result})

    def _checkpoint(self) -> None:
        session, counters = self.session, self.counters
        states = whole_model(self.module), whole_optimizer(self.optimizer)
        if not all(bool(tensor.isfinite().all()) for tensor in states[0].values()):
            raise self._broken("the update left weights that are not finite", counters.step - 1)
        if session.ranks.is_main:
            tokenizer = session.corpus.path / "tokenizer.json"
            session.last_checkpoint = save_checkpoint(
                session.run, counters, self.config, states, tokenizer, session.provenance, session.config.keep
            )
        session.ranks.barrier()
        self.checkpoint_seconds = self._elapse()

    def _anyone_stopped(self) -> bool:
        (count,) = self.session.ranks.sum(float(bool(self.session.stop)))
        return count > 0

    def _opening(self) -> str:
        sampling, ranks = self.stage.sampling, self.session.ranks
        return (
            f"stage {self.stage.name}: {parameter_count(self.config) / 1e6:.1f} M parameters, "
            f"{self.stream.pieces_per_step} pieces (about {sampling.batch_tokens} tokens) a step, micro-batches up to "
            f"{self.micro_tokens} tokens, {ranks.world_size} process(es), "
            f"{str(self.session.dtype).removeprefix('torch.')}"
        )


def _padding_saved(batches: list[Packed]) -> float:
    """Share of token places that this rank's micro-batches would spend on padding, were each padded to its longest."""
    places = sum(batch.num_documents * batch.max_len for batch in batches)
    return 1 - sum(batch.num_tokens for batch in batches) / places


def _num_masked(batch: Packed) -> int:
    return 0 if batch.masked_M is None else batch.masked_M.numel()


@contextlib.contextmanager
def signals(session: Session) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the loop to checkpoint and leave after the step; a second Ctrl-C interrupts at once."""

    def ask(number: int, _frame: FrameType | None) -> None:
        if session.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        session.stop.append(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: signals belong to the host program
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
