"""The one training loop. Methods are data for it: objectives, samplers, optimizers, schedules, transforms."""

from __future__ import annotations

import contextlib
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

from terrazzo.data import Corpus, Loader
from terrazzo.data.keyed import derive
from terrazzo.errors import DivergedError
from terrazzo.packed import Packed
from terrazzo.train.check import stage_schedules
from terrazzo.train.distributed import Ranks, StepModule, gradient_sync, joined, wrap
from terrazzo.train.folder import begun, check_run, disk_errors, finish_run
from terrazzo.train.hardware import compute_dtype, measured_peak
from terrazzo.train.hooks import Hook
from terrazzo.train.pretraining import Pretraining
from terrazzo.train.run import RunConfig
from terrazzo.train.state import (
    Checkpoint,
    Counters,
    best_folder,
    copied,
    restore_model,
    restore_optimizer,
    save_best,
    save_checkpoint,
    step_module,
    whole_model,
    whole_optimizer,
)
from terrazzo.train.units import whole
from terrazzo.train.workload import StageStart, Workload

#: Weight of the past in the smoothed loss that divergence is judged by.
SMOOTHING = 0.95


@dataclass
class Session:
    """What every stage of a run needs."""

    config: RunConfig
    workload: Workload
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
    config: RunConfig,
    *,
    workload: Workload | None = None,
    resume: bool = False,
    hooks: Callable[[Path], Sequence[Hook]] | None = None,
) -> Path | None:
    """Run all stages and write RUN/model; the same code for one process and for torchrun's ranks.

    Args:
        workload: what is learned; None pretrains on the corpus in `config.data`.
        resume: go on from the newest checkpoint in `config.out`; the config must be the one that began the run.
        hooks: makes rank 0's listeners for the run folder, given it.

    Returns:
        The final model folder, or None after SIGTERM or Ctrl-C, when the last checkpoint holds the state.

    Raises:
        InputError: the config, the data or the run folder cannot be used; nothing has been written then.
        DivergedError: the message names the step and the last good checkpoint.
        RunError: the run cannot go on for another reason: a full disk, a lost rank.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with joined(config.device) as ranks, disk_errors(Path(config.out)):
        learned = workload or Pretraining(Corpus.open(config.data, verify=ranks.is_main))
        record, checkpoint = check_run(config, learned, resume)
        dtype = compute_dtype(config.precision, ranks.device)
        learned.check(config, ranks, dtype)
        session = Session(config, learned, ranks, dtype, measured_peak(ranks.device, dtype), checkpoint)
        stage = StageRun(session, None)
        with begun(session.run, record, ranks) as session.provenance, contextlib.ExitStack() as stack:
            if hooks is not None and ranks.is_main:
                session.hooks = hooks(session.run)
                for hook in session.hooks:
                    stack.callback(hook.close)
            stack.enter_context(signals(session))
            model = _run_stages(session, stage)
            return finish_run(session, model) if model is not None else None


def _run_stages(session: Session, stage: StageRun) -> nn.Module | None:
    counters = session.counters
    while (model := stage.run()) is not None and counters.stage + 1 < len(session.config.stages):
        counters.next_stage()
        stage = StageRun(session, model)
    return model


class StageRun:
    """One stage in the making: what the workload gives it, the optimizer, and the steps.

    Args:
        session: its counters say which stage, and how much of it is done.
        previous: the model of the stage before, in this process; None at the start and after resuming.

    Raises:
        InputError: the stage cannot be begun.
    """

    def __init__(self, session: Session, previous: nn.Module | None) -> None:
        self.session, self.counters = session, session.counters
        self.stage = stage = session.config.stages[self.counters.stage]
        ranks = session.ranks
        self.seed = derive(session.config.seed, "stage", self.counters.stage)
        self.schedules = stage_schedules(stage)
        resumed = session.resumed if previous is None else None
        torch.manual_seed(derive(self.seed, "init") % 2**63)
        self.work = session.workload.begin(
            StageStart(
                config=session.config,
                stage=stage,
                seed=self.seed,
                ranks=ranks,
                dtype=session.dtype,
                previous=previous,
                resumed=resumed.path if resumed else None,
                micro_tokens=self.counters.micro_tokens,
            )
        )
        self.counters.micro_tokens = self.work.micro_tokens
        self.objective = self.work.objective
        self.parameters = sum(p.numel() for p in self.work.model.parameters() if p.requires_grad)
        #: The best weights, until a checkpoint writes them to RUN/best.
        self.best: dict[str, Tensor] | None = None
        self.module = wrap(
            StepModule(self.work.model.to(ranks.device), self.objective), ranks, session.config.distributed
        )
        self.module.train()
        if session.config.compile:
            step_module(self.module).encoder.compile_blocks()
        self.optimizer = stage.optimizer.build(step_module(self.module).model)
        if resumed:
            restore_optimizer(self.optimizer, resumed.optimizer_state())
        self.clock = time.perf_counter()
        self.step_seconds: deque[float] = deque(maxlen=5)
        self.evaluation_seconds = self.checkpoint_seconds = 0.0

    def run(self) -> nn.Module | None:
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
        self._settle()
        self._checkpoint()
        return self.work.assemble(whole_model(self.module))

    def _loader(self) -> Loader:
        return Loader(
            self.work.stream,
            self.objective,
            rank=self.session.ranks.rank,
            world_size=self.session.ranks.world_size,
            micro_tokens=self.work.micro_tokens,
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
        names, sums = self._accumulate(batches.batches, weight)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        *totals, grad_norm = torch.stack([*sums, norm]).tolist()  # the step's one wait for the device
        means = {name: total / weight for name, total in zip(names, session.ranks.sum(*totals), strict=True)}
        loss = means.pop("loss")
        self._watch(loss, grad_norm)
        seconds = time.perf_counter() - begin
        self._count(batches.num_tokens, seconds)
        (flops,) = session.ranks.sum(self.work.flops(batches.batches))
        return {
            "step": counters.total_steps,
            "stage": self.stage.name,
            "progress": counters.progress,
            "loss": loss,
            **{"accuracy" if name == "correct" else name: mean for name, mean in means.items()},
            "lr": self.stage.optimizer.lr * self.schedules["lr"](counters.progress),
            "grad_norm": grad_norm,
            "tokens": counters.tokens,
            "step_tokens": batches.num_tokens,
            self.work.counted: int(weight),
            "seconds": counters.seconds,
            "step_seconds": seconds,
            "tokens_per_second": batches.num_tokens / seconds,
            "flops": flops,
            "peak_fraction": flops / (seconds * session.peak * session.ranks.world_size),
            "padding_saved": _padding_saved(batches.batches),
            "micro_batches": int(num_micro),
        }

    def _accumulate(self, batches: list[Packed], weight: float) -> tuple[list[str], list[Tensor]]:
        """Backward passes of all micro-batches; the loss is the sum over predictions over their global number.

        Returns:
            "loss" and what the objective logs, by name and as sums of this rank.
        """
        ranks = self.session.ranks
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with gradient_sync(self.module, enabled=index == len(batches) - 1):
                with self.session.autocast():
                    loss, logs = self.module(batch.to(ranks.device))
                # DDP and FSDP2 average over ranks; the sum is wanted.
                (loss * (ranks.world_size / weight)).backward()
            for name, value in {"loss": loss.detach(), **logs}.items():
                sums[name] = value.float() if name not in sums else sums[name] + value
        return list(sums), list(sums.values())

    def _clip(self) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        limit = self.stage.clip_norm if self.stage.clip_norm is not None else math.inf
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The host knows the norm of gradients that lie on it, and so spares them a product with 1.
        if norm.device.type != "cpu" or norm > limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
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
            return counters.stage_tokens, self.work.step_tokens, budget.tokens
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

    def _broken(self, what: str, step: int) -> DivergedError:
        documents = self.work.sources(step)
        shown = ", ".join(documents[:20]) + (", ..." if len(documents) > 20 else "")
        number = self.counters.total_steps - self.counters.step + step + 1
        return DivergedError(
            f"step {number}: {what}",
            f"Training documents of this step: {shown} ({len(documents)} in all). "
            f"Last good checkpoint: {self.session.last_checkpoint or 'none yet'}. Lower optimizer.lr, or lengthen the "
            "warm-up (schedules.lr.warmup)",
        )

    def _evaluation_due(self) -> bool:
        every, counters = self.session.config.eval_every, self.counters
        if every is not None:
            return counters.total_steps % every == 0
        return math.floor(10 * counters.progress) > math.floor(10 * counters.evaluated)

    def _evaluate(self) -> None:
        session, counters = self.session, self.counters
        self.module.eval()
        with torch.no_grad():
            result = self.work.evaluate(self.module, session.ranks, session.autocast())
        self.module.train()
        counters.evaluated = counters.progress
        self.evaluation_seconds = self._elapse()
        line = {"step": counters.total_steps, "stage": self.stage.name, "tokens": counters.tokens}
        session.tell("on_evaluation", {**line, "seconds": counters.seconds, **result})
        if counters.judge(result["score"]) and self.stage.keep_best:
            self.best = copied(whole_model(self.module))
        if self.stage.patience is not None and counters.without_gain >= self.stage.patience and counters.progress < 1:
            counters.progress = counters.evaluated = 1.0
            session.tell("on_message", f"stage {self.stage.name} ends: {self._best_words()}")

    def _best_words(self) -> str:
        counters = self.counters
        best = "none had a score" if counters.best_score is None else f"the best had {counters.best_score:.4f}"
        return f"{counters.without_gain} evaluations without gain, {best} at step {counters.best_step}"

    def _settle(self) -> None:
        """Make the best evaluated weights the stage's result, once."""
        counters = self.counters
        if not self.stage.keep_best or counters.settled:
            return
        counters.settled = True
        if counters.best_step not in (None, counters.total_steps):
            restore_model(self.module, self.best or self.work.read(best_folder(self.session.run, counters)))
            self.best = None

    def _checkpoint(self) -> None:
        session, counters = self.session, self.counters
        state, optimizer = whole_model(self.module), whole_optimizer(self.optimizer)
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise self._broken("the update left weights that are not finite", counters.step - 1)
        if session.ranks.is_main:
            if self.best:
                best = self.best
                save_best(session.run, counters, lambda folder: self.work.write(folder, best, session.provenance))
            session.last_checkpoint = save_checkpoint(
                session.run,
                counters,
                lambda folder: self.work.write(folder, state, session.provenance),
                optimizer,
                session.config.keep,
            )
        session.ranks.barrier()
        self.best = None
        self.checkpoint_seconds = self._elapse()

    def _anyone_stopped(self) -> bool:
        (count,) = self.session.ranks.sum(float(bool(self.session.stop)))
        return count > 0

    def _opening(self) -> str:
        work, processes = self.work, self.session.ranks.world_size
        parts = [f"{self.parameters / 1e6:.1f} M parameters in training, {work.step_words} a step"]
        if work.micro_tokens * processes < work.step_tokens:
            parts.append(f"micro-batches up to {whole(work.micro_tokens)} tokens")
        if processes > 1:
            parts.append(f"{processes} processes")
        return f"stage {self.stage.name}: {', '.join(parts)}, {str(self.session.dtype).removeprefix('torch.')}"


def _padding_saved(batches: list[Packed]) -> float:
    """Share of token places that this rank's micro-batches would spend on padding, were each padded to its longest."""
    places = sum(batch.num_documents * batch.max_len for batch in batches)
    return 1 - sum(batch.num_tokens for batch in batches) / places


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
