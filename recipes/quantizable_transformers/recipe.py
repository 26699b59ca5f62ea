"""Three pretrainings that differ in attention alone, their outliers, and what eight bits cost each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.arms import arm, curve, train_arms
from recipes.claims import Tier
from recipes.runner import Context
from recipes.wikipedia import corpus_of
from terrazzo.checkpoint import load_model
from terrazzo.compression import W8A8, measure_outliers, pseudo_perplexities, simulate_w8a8
from terrazzo.data import Corpus, evaluation_batches
from terrazzo.data.corpus import Split
from terrazzo.nn import Encoder, MaskedLM, bert
from terrazzo.nn.gate import add_gates
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, Schedule
from terrazzo.packed import Packed
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage

#: What each arm changes: nothing, the paper's values for BERT at 128 tokens, a gate of a small MLP a head.
ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "clipped": {"softmax_gamma": -0.025},
    "gated": {"attention_gate": "mlp"},
}
#: The paper's eight bits, and those that bear outliers.
KINDS = {"w8a8": W8A8(), "w8a8_fine": W8A8(weights="channel", activations="token")}
#: Share of a vocabulary's tokens that are planted with an outlier.
_PLANTED = 40


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        shape: fields of the encoder, BERT's otherwise.
        calibration_tokens: of training documents, for fixed ranges; eval_tokens: of held-out ones.
    """

    shape: dict[str, Any]
    tokens: int
    batch_tokens: int
    max_len: int = 128
    lr: float = 1e-3
    megabytes: float = 12
    vocab_size: int = 4096
    seeds: tuple[int, ...] = (0, 1)
    calibration_tokens: int = 16 * 2048
    eval_tokens: int = 65_536
    workers: int = 2
    run: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})


_SMALL = {"width": 128, "depth": 4, "num_heads": 4, "mlp_width": 512, "dropout": 0.0, "attention_dropout": 0.0}
SETTINGS = {
    "smoke": Settings(
        shape={**_SMALL, "width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64},
        tokens=8192,
        batch_tokens=1024,
        max_len=64,
        lr=1e-2,
        seeds=(0,),
        calibration_tokens=2048,
        eval_tokens=2048,
        workers=0,
    ),
    "small": Settings(shape=_SMALL, tokens=1_500_000, batch_tokens=2048),
    "paper": Settings(
        shape={},
        tokens=1_000_000 * 256 * 128,
        batch_tokens=256 * 128,
        lr=1e-4,
        megabytes=1e9,
        vocab_size=30_522,
        seeds=(0,),
        workers=0,
        run={"device": "auto", "threads": None, "checkpoint_every": 5000},
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Per seed: held-out loss, outliers and the cost of eight bits of each arm; and two properties of the methods."""
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    corpus = corpus_of(tier, context, settings.megabytes, settings.vocab_size)
    configs = {
        (name, seed): arm(context.work, name, corpus.path, _stage(settings, fields), seed, **_options(settings))
        for seed in settings.seeds
        for name, fields in ARMS.items()
    }
    losses = dict(zip(configs, train_arms(list(configs.values()), settings.workers, context.log), strict=True))
    context.record("curves", {Path(config.out).name: curve(config) for config in configs.values()})
    texts = _Texts(corpus, settings)
    metrics: dict[int, dict[str, float]] = {}
    for seed in settings.seeds:
        metrics[seed] = planted_cosines(seed) | {"identity_difference": _identity(configs["vanilla", seed], texts)}
        for name in ARMS:
            own = {"loss": losses[name, seed], **_measured(configs[name, seed], texts, context)}
            metrics[seed] |= {f"{name}_{metric}": value for metric, value in own.items()}
            context.log(f"{name}, seed {seed}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in own.items()))
    return metrics


def _stage(settings: Settings, fields: dict[str, Any]) -> Stage:
    return Stage(
        model=Init(family="bert", size="base", fields={"max_len": settings.max_len, **settings.shape, **fields}),
        objective=MLMConfig(rate=0.15),
        sampling=Sampling(max_len=settings.max_len, batch_tokens=settings.batch_tokens),
        optimizer=AdamWConfig(lr=settings.lr, weight_decay=0.01, decouple_lr=False),
        schedules={"lr": Schedule(warmup=0.05, final=0.0)},
        budget=Budget(tokens=settings.tokens),
    )


def _options(settings: Settings) -> dict[str, Any]:
    return {"eval_tokens": settings.eval_tokens, **settings.run}


class _Texts:
    """Batches with fixed masks: of training documents to calibrate with, of held-out ones to judge by."""

    def __init__(self, corpus: Corpus, settings: Settings) -> None:
        self.corpus, self.settings = corpus, settings
        self.calibration = self._batches(corpus.train, settings.calibration_tokens)
        self.evaluated = self._batches(corpus.heldout, settings.eval_tokens)

    def _batches(self, split: Split, max_tokens: int) -> list[Packed]:
        return evaluation_batches(
            split,
            self.corpus.special,
            max_len=self.settings.max_len,
            objective=MLMConfig(rate=0.15).build(self.corpus.special, self.corpus.vocab_size),
            micro_tokens=2048,
            max_tokens=max_tokens,
        )


def _measured(config: RunConfig, texts: _Texts, context: Context) -> dict[str, float]:
    """Outliers over the held-out texts, pseudo-perplexity in floats, and how many times as high eight bits make it."""
    model = _model(config)
    found = measure_outliers(model.encoder, texts.evaluated)
    context.record(f"outliers_{Path(config.out).name}", {"inf_norm": found.inf_norm, "kurtosis": found.kurtosis})
    values = pseudo_perplexities(model, texts.calibration, texts.evaluated, KINDS)
    ratios = {f"{kind}_ratio": values[kind] / values["fp32"] for kind in KINDS}
    return {
        "inf_norm": found.max_inf_norm,
        "kurtosis": found.mean_kurtosis,
        "perplexity": values["fp32"],
        **ratios,
    }


@torch.no_grad()
def _identity(config: RunConfig, texts: _Texts) -> float:
    """How far the hidden states of the trained model move when gates are added to it, relative to their norm."""
    model = _model(config).eval()
    state, gated_config = add_gates(model.state_dict(), model.config, "mlp", 0.25)
    gated = MaskedLM(gated_config).eval()
    gated.load_state_dict(state)
    batch = texts.evaluated[0]
    before, after = model.encoder(batch), gated.encoder(batch)
    return float((after - before).norm() / before.norm())


@torch.no_grad()
def planted_cosines(seed: int) -> dict[str, float]:
    """An encoder with random weights in which one token has one channel 100 times the largest value: the mean cosine
    of all other tokens' states with and without eight bits, coarse and fine.
    """
    draw = torch.Generator().manual_seed(seed)
    batches = [_random_batch(draw) for _ in range(6)]
    torch.manual_seed(seed)
    fields = {"width": 64, "depth": 2, "num_heads": 4, "mlp_width": 128, "norm_placement": "pre", "init_std": 0.3}
    encoder = Encoder(bert("tiny", _PLANTED, embedding_norm=False, **fields)).eval()
    largest = max(encoder.embeddings(batch).abs().max() for batch in batches)
    encoder.embeddings.tokens.weight[7, 3] = 100 * largest
    cosines = {}
    for name, kind in zip(("coarse", "fine"), KINDS.values(), strict=True):
        rounded = simulate_w8a8(encoder, batches[:4], kind)
        cosines[f"planted_{name}_cosine"] = _cosine(encoder, rounded, batches[4:])
    return cosines


def _cosine(encoder: Encoder, rounded: Encoder, batches: Sequence[Packed]) -> float:
    cosines: list[Tensor] = []
    for batch in batches:
        cosines.append(F.cosine_similarity(encoder(batch), rounded(batch))[batch.tokens_T != 7])
    return float(torch.cat(cosines).mean())


def _random_batch(draw: torch.Generator) -> Packed:
    lengths = (40, 25, 60)
    return Packed(tokens_T=torch.randint(0, _PLANTED, (sum(lengths),), generator=draw), lengths=lengths)


def _model(config: RunConfig) -> MaskedLM:
    model = load_model(Path(config.out) / "model")
    assert isinstance(model, MaskedLM)
    return model
