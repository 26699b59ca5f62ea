"""GottBERT's pipeline on German novels: filter, own byte-level BPE, RoBERTa pretraining, with and without filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.arms import curve, loss_on, per_seed, samples, spread, texts_of, train_by_seed, unigram_loss
from recipes.claims import Tier
from recipes.fertility import english_tokenizer, tokens_per_word
from recipes.gottbert.corpus import Dirty, Novels, invented_novels, normal, novels, write_dirty, write_unseen
from recipes.gottbert.downstream import DOWNSTREAM, SMOKE, invented_rows, tried
from recipes.runner import Context
from recipes.suites import Trial, tasks_root
from recipes.wikipedia import SOURCE as ENGLISH
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, MuonConfig, Schedule
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage

GERMAN = "German novels as .txt files, e.g. https://github.com/computationalstylistics/68_german_novels"
#: RoBERTa: learned positions that begin at 2, one token type.
ROBERTA: dict[str, Any] = {"position_offset": 2, "token_types": 1}
KINDS = ("lost_bytes", "mojibake", "keywords", "slogans", "shouting", "foreign")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        planted: share of the documents that are planted; GottBERT's filter took 17 % of OSCAR's documents.
        language: of the language filter; None leaves it out.
        trial: what the encoders are fine-tuned on; None leaves it out.
    """

    stage: Stage
    megabytes: float = 12
    planted: float = 0.17
    language: str | None = "de"
    vocab_size: int | None = 8192
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_tokens: int = 65_536
    workers: int = 2
    run: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})
    trial: Trial | None = None


def _stage(tokens: int, max_len: int, batch_tokens: int) -> Stage:
    return Stage(
        model=Init(family="bert", size="tiny", fields={**ROBERTA, "dropout": 0.0, "attention_dropout": 0.0}),
        sampling=Sampling(max_len=max_len, batch_tokens=batch_tokens),
        optimizer=MuonConfig(),
        budget=Budget(tokens=tokens),
    )


SETTINGS = {
    "smoke": Settings(
        stage=_stage(4096, 64, 512),
        language=None,
        vocab_size=None,
        seeds=(0,),
        eval_tokens=2048,
        workers=0,
        trial=SMOKE,
    ),
    "small": Settings(stage=_stage(1_000_000, 128, 2048)),
    "downstream": Settings(stage=_stage(1_000_000, 128, 2048), trial=DOWNSTREAM),
    "paper": Settings(
        stage=Stage(
            model=Init(family="bert", size="base", fields=ROBERTA),
            objective=MLMConfig(rate=0.15),
            sampling=Sampling(max_len=512, batch_tokens=8192 * 512),
            optimizer=AdamWConfig(lr=4e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decouple_lr=False),
            schedules={"lr": Schedule(warmup=0.1, final=0.0)},
            budget=Budget(steps=100_000),
        ),
        megabytes=1e9,
        vocab_size=52_000,
        seeds=(0,),
        eval_tokens=1 << 20,
        workers=0,
        run={"device": "auto", "threads": None, "checkpoint_every": 1000},
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Plant dirt, prepare with and without the filter, train both; then measure the corpora and the encoders.

    The tier `downstream` measures what the encoders come to on German tasks, `small` everything else.
    """
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    wikipedia = None if tier == "smoke" else context.data("enwiki", ENGLISH)
    if wikipedia is None:
        source = invented_novels()
    else:
        source = novels(context.data("novels_de", GERMAN), wikipedia, settings.megabytes)
    dirty = write_dirty(source, context.work / "dirty", settings.planted)
    context.log(f"{len(dirty.clean)} clean paragraphs, {sum(map(len, dirty.planted.values()))} planted")
    corpora = _corpora(settings, context, dirty)
    metrics: dict[str, Any] = {}
    if tier != "downstream":
        metrics = _pretraining(settings, context, source, dirty, corpora, wikipedia)
    if settings.trial is not None:
        metrics |= _downstream(settings.trial, settings, context, source, corpora)
    return per_seed(settings.seeds, metrics)


def _corpora(settings: Settings, context: Context, dirty: Dirty) -> dict[str, Corpus]:
    """The same folder with and without the filter, in the tokens of the filtered one."""
    language, size = settings.language, settings.vocab_size
    cleaning = PrepareConfig(preset="german", language=language, tokenizer_kind="bpe", vocab_size=size)
    filtered = prepare([dirty.folder], context.work / "filtered", cleaning)
    raw = prepare([dirty.folder], context.work / "raw", PrepareConfig(preset="raw", tokenizer=str(filtered.path)))
    return {"filtered": filtered, "raw": raw}


def _pretraining(
    settings: Settings,
    context: Context,
    source: Novels,
    dirty: Dirty,
    corpora: dict[str, Corpus],
    wikipedia: Path | None,
) -> dict[str, Any]:
    """What the filter took, what the tokenizer spends, and both arms held against novels of unseen authors."""
    filtered = corpora["filtered"]
    unseen = write_unseen(source, context.work / "unseen")
    heldout = prepare([unseen], context.work / "heldout", PrepareConfig(preset="german", tokenizer=str(filtered.path)))
    metrics = _filter_metrics(dirty, filtered) | _fertility(settings, context, wikipedia, unseen, heldout, filtered)
    context.record("dropped", filtered.manifest["statistics"]["dropped"])
    losses = _losses(settings, context, _trained(settings, context, corpora), heldout)
    gains = [a - b for a, b in zip(losses["raw"], losses["filtered"], strict=True)]
    return metrics | {
        "heldout_loss": losses["filtered"],
        "heldout_loss_raw": losses["raw"],
        "filtering_gain": gains,
        "spread": spread(losses["raw"], losses["filtered"]),
        "unigram_loss": unigram_loss(filtered.train, heldout.train, filtered.vocab_size),
    }


def _downstream(
    trial: Trial, settings: Settings, context: Context, source: Novels, corpora: dict[str, Corpus]
) -> dict[str, Any]:
    """What both arms come to on German tasks, beside encoders without pretraining."""
    if settings.language is None:
        texts = [text for texts in source.training.values() for text in texts]
        root = invented_rows(texts, context.work / "rows")
    else:
        root = tasks_root(trial, context)
    configs = _trained(settings, context, corpora)
    models = {name: [Path(config.out) / "model" for config in members] for name, members in configs.items()}
    return tried(trial, models, root, settings.workers, context)


def _filter_metrics(dirty: Dirty, filtered: Corpus) -> dict[str, float]:
    """What went and what stayed, from the manifest's counts by file and the texts in the finished corpus."""
    kept = {Path(s["name"]).stem: s["kept"] for s in filtered.manifest["statistics"]["sources"]}
    texts = {normal(text) for text in texts_of(filtered)}
    mended = sum(normal(text) in texts for text in dirty.mended)
    broken = {kind: kept[f"planted_{kind}"] for kind in dirty.planted}
    broken["mojibake"] -= mended
    removed = {f"removed_{kind}": 1 - broken[kind] / len(dirty.planted[kind]) for kind in KINDS}
    characters = [(len(text), normal(text) in texts) for text in dirty.clean]
    return {
        "planted_removed": 1 - sum(broken.values()) / sum(map(len, dirty.planted.values())),
        **removed,
        "mojibake_mended": mended / len(dirty.mended),
        "clean_kept": sum(n for n, stays in characters if stays) / sum(n for n, _ in characters),
        "clean_kept_documents": sum(stays for _, stays in characters) / len(characters),
    }


def _fertility(
    settings: Settings, context: Context, wikipedia: Path | None, unseen: Path, heldout: Corpus, filtered: Corpus
) -> dict[str, float]:
    english = english_tokenizer(wikipedia, context.work, min(settings.megabytes, 128), filtered.vocab_size)
    context.log(f"tokenizers: {filtered.vocab_size} tokens from German, {english.vocab_size} from English")
    return {
        "tokens_per_word": float(heldout.manifest["statistics"]["tokens_per_word"]),
        "tokens_per_word_english": tokens_per_word([unseen], context.work / "heldout-english", "german", english.path),
        "vocab_size": filtered.vocab_size,
        "vocab_size_english": english.vocab_size,
    }


def _trained(settings: Settings, context: Context, corpora: dict[str, Corpus]) -> dict[str, list[RunConfig]]:
    """The finished runs of each arm, one a seed."""
    fields = {"eval_tokens": settings.eval_tokens, **settings.run}
    configs = train_by_seed(
        context.work, corpora, settings.stage, settings.seeds, settings.workers, context.log, **fields
    )
    runs = [config for one_seed in zip(*configs.values(), strict=True) for config in one_seed]
    context.record("curves", {Path(run.out).name: curve(run) for run in runs})
    context.record("samples", samples(configs["filtered"][0]))
    return configs


def _losses(
    settings: Settings, context: Context, configs: dict[str, list[RunConfig]], heldout: Corpus
) -> dict[str, list[float]]:
    """Held-out loss of each arm over seeds, on the same documents of unseen authors and the same masks."""
    max_len = settings.stage.sampling.max_len
    losses = {
        name: [
            loss_on(Path(config.out) / "model", heldout, heldout.train, max_len, settings.eval_tokens)
            for config in members
        ]
        for name, members in configs.items()
    }
    context.record("losses", losses)
    return losses
