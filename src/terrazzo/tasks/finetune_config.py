"""How a fine-tuning is asked for, and the run of the loop that each learning rate and seed becomes."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig, Ramp, Schedule
from terrazzo.optim.roles import Role
from terrazzo.tasks.adapters import PACE_NAME, AdapterConfig, LoraConfig
from terrazzo.tasks.rows import KINDS
from terrazzo.tasks.training import Freeze
from terrazzo.train import Budget, FromFolder, RunConfig, Sampling, Stage


@config
class FinetuneConfig:
    """A fine-tuning: every learning rate with every seed, the best kept.

    Args:
        model: the folder to begin from: ours or a published one, or what pretrain or finetune wrote.
        out: folder for everything.
        task: label, pair, regression, tag, span or multi.
        train, eval: files or data set names; without `eval`, a tenth of the training rows scores the models instead.
        fields: columns that are called otherwise: {"text": "tweet"}.
        options: fields of the task: {"pooling": "cls", "metric": "mcc"}.
        seeds: how many, from `seed` on; each draws the head, the dropout and the order of the rows.
        lr: peak learning rates, of which the one with the best mean score is taken; empty takes `default_lr`.
        epochs: passes over the training rows.
        budget: instead of epochs; steps and tokens are each run's, seconds are the whole command's, shared by its runs.
        batch_size: documents of a step.
        max_len: tokens, special ones included, after which a text is cut (or read in windows); None is the model's own.
        warmup: share of a run in which the rate grows; then it falls linearly to zero.
        weight_decay: as AdamW's, times the learning rate; norms and biases are exempt.
        layer_decay: rate of a block as a share of the one above it.
        rates: multiples of the rate by role of the parameter: {"head": 10}.
        patience: evaluations without gain that end a run; None trains to its end.
        keep_best: the model of a run is that of its best evaluation, not its last.
        evals_per_epoch: evaluations in a pass over the training rows; with a budget, ten in a run.
        loss: class weights, focal loss, smoothing.
        freeze: parts that are not trained.
        lora: train low-rank adapters instead of the encoder.
        adapter: the same for every kind: lora; pst and dsee, which also prune the encoder.
        keep_runs: leave every run's weights; otherwise only the best model stays, and what the others scored.
    """

    model: str
    out: str
    task: str = "label"
    train: str = ""
    eval: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    seed: int = 0
    lr: tuple[float, ...] = ()
    epochs: float = 3.0
    budget: Budget | None = None
    batch_size: int = 32
    max_len: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    rates: dict[Role, float] = field(default_factory=dict)
    patience: int | None = None
    keep_best: bool = True
    evals_per_epoch: int = 1
    loss: SupervisedConfig = field(default_factory=SupervisedConfig)
    freeze: Freeze = "none"
    lora: LoraConfig | None = None
    adapter: AdapterConfig | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = None
    keep_runs: bool = False

    def __post_init__(self) -> None:
        if self.task not in KINDS:
            raise InputError(f"task {self.task!r}: {nearest(self.task, KINDS)}")
        least_values = {"seeds": 1, "batch_size": 1, "max_len": 8, "evals_per_epoch": 1, "threads": 1, "seed": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if not self.epochs > 0:
            raise InputError(f"epochs must be above 0, got {self.epochs}")
        if len(set(self.lr)) < len(self.lr):
            raise InputError(f"lr: {list(self.lr)} names a rate twice")
        if self.lora is not None and self.adapter is not None:
            raise InputError(f"lora and adapter (kind {self.adapter.kind!r}) are two adapters at once: drop one")
        if self.chosen_adapter is not None and self.freeze == "encoder":
            kind = self.chosen_adapter.kind
            raise InputError(f"{kind} trains adapters in the encoder, freeze='encoder' trains nothing there: drop one")
        for rate in self.lr:
            self.optimizer(rate)

    @property
    def chosen_adapter(self) -> AdapterConfig | None:
        """The adapter, under whichever name it was asked for."""
        return self.adapter or self.lora

    def optimizer(self, lr: float) -> AdamWConfig:
        """AdamW as fine-tuning has it since BERT."""
        return AdamWConfig(
            lr=lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=self.weight_decay,
            decouple_lr=False,
            decay_norm_and_bias=False,
            layer_decay=self.layer_decay,
            rates=self.rates,
        )


def default_lr(encoder: EncoderConfig, options: FinetuneConfig) -> float:
    """The peak learning rate where none is given: 5e-5 at width 768, more for thinner encoders.

    It is 5e-5 (768 / width)^1.5 to one digit: 1e-4 at width 384, 7e-4 at 128; ten times that where the encoder stays as
    it is or learns through adapters alone, but for PST's. An encoder that was pretrained for minutes wants still more:
    try several.
    """
    full = 5e-5 * (768 / encoder.width) ** 1.5
    if options.chosen_adapter is not None:
        return float(f"{options.chosen_adapter.rate * full:.1g}")
    return float(f"{10 * full if options.freeze == 'encoder' else full:.1g}")


def run_config(options: FinetuneConfig, documents: int, lr: float, seed: int, out: str, budget: Budget) -> RunConfig:
    """The run of one learning rate and seed.

    Args:
        documents: of the training rows, of which an epoch consists.
        budget: of this run.
    """
    epoch, adapter = -(-documents // min(options.batch_size, documents)), options.chosen_adapter
    stage = Stage(
        name=options.task,
        model=FromFolder(path=options.model),
        objective=options.loss,
        sampling=Sampling(workers=0),
        optimizer=options.optimizer(lr),
        # a step has the rate of its end, so that the only one would have none
        schedules={
            "lr": Schedule(warmup=options.warmup, final=1.0 if budget.steps == 1 else 0.0),
            **({PACE_NAME: Ramp(start=0.0, end=1.0)} if adapter is not None and adapter.paced else {}),
        },
        budget=budget,
        patience=options.patience,
        keep_best=options.keep_best,
    )
    return RunConfig(
        data=options.train or "rows",
        out=out,
        stages=(stage,),
        seed=seed,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        keep=1,
        eval_every=None if options.budget else max(1, round(epoch / options.evals_per_epoch)),
        divergence=1e6,  # a loss that rises is for the evaluations to judge; one that is no number still ends the run
    )


def steps_of(options: FinetuneConfig, documents: int) -> int:
    """Steps of a run of `epochs`."""
    return max(1, round(options.epochs * documents / min(options.batch_size, documents)))
