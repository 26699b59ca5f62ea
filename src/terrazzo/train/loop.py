"""The one training loop. Methods are data for it: objectives, samplers, optimizers, schedules, transforms."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.data import Corpus, Loader, Stream, evaluation_batches, pieces_for_tokens, word_start_table
from terrazzo.data.keyed import derive
from terrazzo.errors import InputError, RunError
from terrazzo.nn import EncoderConfig, MaskedLM, parameter_count, training_flops
from terrazzo.optim import Schedule
from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks, StepModule, gradient_sync, joined, lost_rank, wrap
from terrazzo.train.evaluation import evaluate
from terrazzo.train.folder import disk_errors, finish_run, open_run
from terrazzo.train.hardware import compute_dtype, measured_peak
from terrazzo.train.hooks import Hook
from terrazzo.train.memory import choose_micro_tokens
from terrazzo.train.run import RunConfig
from terrazzo.train.sources import build_model
from terrazzo.train.stage import Stage
from terrazzo.train.state import Checkpoint, Counters, gather, restore_optimizer, save_checkpoint, step_module

#: Weight of the past in the smoothed loss that divergence is judged by.
SMOOTHING = 0.95


@dataclass
class Session:
    """What every stage of a run needs."""

    config: RunConfig
    run: Path
    corpus: Corpus
    ranks: Ranks
    dtype: torch.dtype
    peak: float
    provenance: dict[str, Any]
    hooks: Sequence[Hook] = ()
    counters: Counters = field(default_factory=Counters)
    resume_from: Checkpoint | None = None
    last_checkpoint: Path | None = None
    stop: list[str] = field(default_factory=list)

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
        run, checkpoint, provenance = open_run(config, corpus, ranks, resume)
        dtype = compute_dtype(config.precision, ranks.device)
        counters = checkpoint.counters if checkpoint else Counters()
        session = Session(
            config, run, corpus, ranks, dtype, measured_peak(ranks.device, dtype), provenance, (), counters, checkpoint
        )
        session.last_checkpoint = checkpoint.path if checkpoint else None
        with contextlib.ExitStack() as stack:
            if hooks is not None and ranks.is_main:
                session.hooks = hooks(run)
                for hook in session.hooks:
                    stack.callback(hook.close)
            stack.enter_context(signals(session))
            model = _run_stages(session)
        return finish_run(session, model) if model is not None else None


def _run_stages(session: Session) -> MaskedLM | None:
    model: MaskedLM | None = None
    for index in range(session.counters.stage, len(session.config.stages)):
        model = StageRun(session, session.config.stages[index], index, model).run()
        if model is None:
            return None
        if index + 1 < len(session.config.stages):
            session.counters.next_stage()
    return model


class StageRun:
    """One stage in the making: model, stream, objective and optimizer, and the steps over them.

    Args:
        previous: the model of the stage before, in this process; None at the start and after resuming.
    """

    def __init__(self, session: Session, stage: Stage, index: int, previous: MaskedLM | None) -> None:
        self.session, self.stage, self.counters = session, stage, session.counters
        corpus, ranks = session.corpus, session.ranks
        self.seed = derive(session.config.seed, "stage", index)
        self.objective = stage.objective.build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
        self.schedules = {"lr": Schedule(), **stage.schedules}
        resumed = session.resume_from if previous is None else None
        torch.manual_seed(derive(self.seed, "init") % 2**63)
        model = build_model(stage.model, corpus, previous, resumed.path if resumed else None)
        self.config: EncoderConfig = model.config
        self.module = wrap(StepModule(model.to(ranks.device), self.objective), ranks, session.config.distributed)
        self.module.train()
        if session.config.compile:
            step_module(self.module).model.encoder.compile_blocks()
        self.optimizer = stage.optimizer.build(step_module(self.module).model)
        if resumed:
            restore_optimizer(self.module, self.optimizer, resumed.optimizer_state())
        self._check_schedules()
        sampling = stage.sampling
        pieces = pieces_for_tokens(corpus.train, corpus.special, sampling.max_len, sampling.batch_tokens)
        self.stream = Stream(
            corpus.train, corpus.special, max_len=sampling.max_len, pieces_per_step=pieces, seed=self.seed
        )
        bf16 = session.dtype == torch.bfloat16
        self.micro_tokens = choose_micro_tokens(
            self.config,
            ranks.device,
            bf16,
            sampling.micro_tokens,
            sampling.max_len,
            sampling.batch_tokens,
            ranks.world_size,
        )
        self.heldout = evaluation_batches(
            corpus.heldout,
            corpus.special,
            max_len=sampling.max_len,
            objective=self.objective,
            micro_tokens=self.micro_tokens,
            max_tokens=session.config.eval_tokens,
        )
        self.step_seconds = 0.0

    def run(self) -> MaskedLM | None:
        """Train to the end of the budget; None if a signal ended it before."""
        session, counters = self.session, self.counters
        session.tell("on_message", self._opening())
        loader = Loader(
            self.stream,
            self.objective,
            rank=session.ranks.rank,
            world_size=session.ranks.world_size,
            micro_tokens=self.micro_tokens,
            workers=self.stage.sampling.workers,
            start_step=counters.step,
        )
        with loader:
            while (progress := self._progress()) is not None:
                line = self._step(loader, progress)
                session.tell("on_step", line)
                ended, stopped = self._progress() is None, self._anyone_stopped()
                if self._evaluation_due(progress, ended) and not stopped:
                    self._evaluate()
                if counters.total_steps % session.config.checkpoint_every == 0 or ended or stopped:
                    self._checkpoint()
                if stopped:
                    session.tell(
                        "on_message", f"stopped by {' '.join(session.stop) or 'another rank'}; --resume goes on"
                    )
                    return None
        state, _ = gather(self.module, self.optimizer)
        model = step_module(self.module).model if session.ranks.world_size == 1 else MaskedLM(self.config)
        if session.ranks.world_size > 1:
            model.load_state_dict(state)
        return model

    def _step(self, loader: Loader, progress: float) -> dict[str, Any]:
        session, counters = self.session, self.counters
        begin = time.perf_counter()
        self._apply_schedules(progress)
        batches = next(loader)
        torch.manual_seed(derive(self.seed, "dropout", counters.step, session.ranks.rank) % 2**63)
        weight, num_micro = session.ranks.sum(batches.weight, len(batches.batches))
        with lost_rank():
            sums = self._accumulate(batches.batches, weight)
            norm = self._clip()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        loss_sum, correct, grad_norm = torch.stack([*sums, norm]).tolist()  # the step's one wait for the device
        loss_sum, correct = session.ranks.sum(loss_sum, correct)
        loss = loss_sum / weight
        self._check_loss(loss, grad_norm)
        seconds = time.perf_counter() - begin
        self._count(batches.num_tokens, seconds, loss)
        flops = sum(training_flops(self.config, b.lengths, _num_masked(b)) for b in batches.batches)
        (flops,) = session.ranks.sum(flops)
        return {
            "step": counters.total_steps,
            "stage": self.stage.name,
            "progress": progress,
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
            "padding": 0.0,
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

    def _check_schedules(self) -> None:
        for name in self.schedules:
            room, _, key = name.partition(".")
            groups, objective = self.optimizer.param_groups, self.objective
            if (
                name == "lr"
                or (room == "optimizer" and key in groups[0])
                or (room == "objective" and key in vars(objective))
            ):
                continue
            options = ["lr", *(f"objective.{k}" for k, v in vars(objective).items() if isinstance(v, float))]
            raise InputError(f"schedules.{name}: nothing of that name can be scheduled; known: {', '.join(options)}")

    def _apply_schedules(self, progress: float) -> None:
        for name, schedule in self.schedules.items():
            value, (room, _, key) = schedule(progress), name.partition(".")
            if room == "objective":
                setattr(self.objective, key, value)
                continue
            for group in self.optimizer.param_groups:
                group[key or "lr"] = value if key else group["base_lr"] * value

    def _progress(self) -> float | None:
        """Share of the budget spent when the coming step is done, None when there is no coming step."""
        budget, counters = self.stage.budget, self.counters
        if budget.steps is not None:
            return (counters.step + 1) / budget.steps if counters.step < budget.steps else None
        if budget.tokens is not None:
            expected = self.stage.sampling.batch_tokens
            spent = counters.stage_tokens
            return min(1.0, (spent + expected) / budget.tokens) if spent + expected / 2 < budget.tokens else None
        assert budget.seconds is not None
        (seconds, step_seconds) = self.session.ranks.sum(
            *((counters.stage_seconds, self.step_seconds) if self.session.ranks.is_main else (0.0, 0.0))
        )
        if counters.step and seconds + step_seconds / 2 >= budget.seconds:
            return None
        return min(1.0, (seconds + step_seconds) / budget.seconds)

    def _count(self, tokens: int, seconds: float, loss: float) -> None:
        counters = self.counters
        counters.step += 1
        counters.total_steps += 1
        counters.tokens += tokens
        counters.stage_tokens += tokens
        counters.seconds += seconds
        counters.stage_seconds += seconds
        self.step_seconds = seconds if not self.step_seconds else 0.8 * self.step_seconds + 0.2 * seconds
        past = counters.smoothed_loss
        counters.smoothed_loss = loss if past is None else SMOOTHING * past + (1 - SMOOTHING) * loss
        counters.lowest_loss = min(counters.smoothed_loss, counters.lowest_loss or math.inf)

    def _check_loss(self, loss: float, grad_norm: float) -> None:
        counters, limit = self.counters, self.session.config.divergence
        smoothed, lowest = counters.smoothed_loss, counters.lowest_loss
        if math.isfinite(loss) and math.isfinite(grad_norm):
            if smoothed is None or lowest is None or smoothed - lowest <= limit:
                return
            what = f"the loss diverged: its running mean {smoothed:.3f} is {smoothed - lowest:.2f} above its lowest"
        else:
            what = f"the loss is {loss}, the gradient norm {grad_norm}"
        documents = self.stream.documents(counters.step)
        shown = ", ".join(str(d) for d in documents[:20]) + (", ..." if len(documents) > 20 else "")
        good = self.session.last_checkpoint
        raise RunError(
            f"step {counters.total_steps + 1}: {what}. Its training documents: {shown} ({len(documents)} in all). "
            f"Last good checkpoint: {good or 'none yet'}. Lower optimizer.lr, or lengthen schedules.lr.warmup"
        )

    def _evaluation_due(self, progress: float, ended: bool) -> bool:
        every = self.session.config.eval_every
        if every is not None:
            return ended or self.counters.total_steps % every == 0
        previous = getattr(self, "_last_tenth", None)
        self._last_tenth = math.floor(progress * 10)
        return ended or (previous is not None and self._last_tenth > previous)

    def _evaluate(self) -> None:
        begin = time.perf_counter()
        result = evaluate(self.module, self.heldout, self.session.ranks, self.session.autocast())
        seconds = time.perf_counter() - begin
        self.counters.seconds += seconds
        self.counters.stage_seconds += seconds
        counters = self.counters
        line = {
            "step": counters.total_steps,
            "stage": self.stage.name,
            "tokens": counters.tokens,
            "seconds": counters.seconds,
        }
        self.session.tell("on_evaluation", {**line, **result})

    def _checkpoint(self) -> None:
        session = self.session
        states = gather(self.module, self.optimizer)
        if session.ranks.is_main:
            tokenizer = session.corpus.path / "tokenizer.json"
            session.last_checkpoint = save_checkpoint(
                session.run, self.counters, self.config, states, tokenizer, session.provenance, session.config.keep
            )
        session.ranks.barrier()

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
