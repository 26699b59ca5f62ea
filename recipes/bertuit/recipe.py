"""BERTuit's pipeline on Spanish tweets: mentions and addresses to tags, own byte-level BPE, RoBERTa pretraining."""

from __future__ import annotations

import gzip
import html
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.arms import curve, loss_on, per_seed, samples, spread, texts_of, train_by_seed, unigram_loss
from recipes.bertuit.downstream import DOWNSTREAM, SMOKE, invented_rows, tried
from recipes.claims import Tier
from recipes.fertility import english_tokenizer, tokens_per_word, write_jsonl
from recipes.runner import Context
from recipes.suites import Trial, tasks_root
from recipes.wikipedia import SOURCE as ENGLISH
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, MuonConfig, Schedule
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage

TWEETS = "Spanish tweets, the data/*.json.gz of https://github.com/sadit/TextClassificationTutorial"
EMOJI = "emo50k.json.gz"
EMOJI_TRAINING = "emojispace.train.json.gz"
NEWS = "spanish-twitter-news-and-opinions-top25-68.{}.json.gz"
ROBERTA: dict[str, Any] = {"position_offset": 2, "token_types": 1}

# Our own look for what the preset should have replaced, simpler than its patterns.
_MENTION = re.compile(r"(?<!\w)@\w|(?<!\w)_usr(?!\w)")
_ADDRESS = re.compile(r"https?://|www\.\w|(?<!\w)_url(?!\w)")
_CUT = re.compile(r"^RT @\w+:|@\w+|https?:\S*|www\.\S+|\bhtt\S*…|_usr|_url")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        emoji: file of tweets with emoji; the one of all holds the test rows of the task on emoji.
        trial: what the encoders are fine-tuned on; None leaves it out.
    """

    stage: Stage
    vocab_size: int | None = 8192
    english_megabytes: float = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_tokens: int = 65_536
    workers: int = 2
    run: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})
    emoji: str = EMOJI
    trial: Trial | None = None


@dataclass(frozen=True)
class Sources:
    """Files: all tweets to learn from, those with real mentions and addresses, and unseen ones without any."""

    all: list[Path]
    news: Path
    unseen: Path


def _stage(tokens: int, max_len: int, batch_tokens: int) -> Stage:
    return Stage(
        model=Init(family="bert", size="tiny", fields={**ROBERTA, "dropout": 0.0, "attention_dropout": 0.0}),
        sampling=Sampling(max_len=max_len, batch_tokens=batch_tokens),
        optimizer=MuonConfig(),
        budget=Budget(tokens=tokens),
    )


SETTINGS = {
    "smoke": Settings(
        stage=_stage(4096, 64, 512), vocab_size=None, seeds=(0,), eval_tokens=2048, workers=0, trial=SMOKE
    ),
    "small": Settings(stage=_stage(750_000, 128, 2048)),
    "downstream": Settings(stage=_stage(750_000, 128, 2048), emoji=EMOJI_TRAINING, trial=DOWNSTREAM),
    "paper": Settings(
        stage=Stage(
            model=Init(family="bert", size="base", fields=ROBERTA),
            objective=MLMConfig(rate=0.15),
            sampling=Sampling(max_len=128, batch_tokens=8192 * 128),
            optimizer=AdamWConfig(lr=6e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decouple_lr=False),
            schedules={"lr": Schedule(warmup=0.048, final=0.0)},
            budget=Budget(steps=500_000),
        ),
        vocab_size=50_265,
        english_megabytes=80,
        seeds=(0,),
        eval_tokens=1 << 20,
        workers=0,
        run={"device": "auto", "threads": None, "checkpoint_every": 1000},
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Prepare all tweets, train on all, and on news tweets with and without tags; measure the corpora and the encoders.

    The tier `downstream` measures what the encoders come to on Spanish tasks, `small` everything else.
    """
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    if tier == "smoke":
        sources = invented(context.work)
    else:
        sources = published(context.data("spanish_tweets", TWEETS), context.work, settings.emoji)
    corpora = _corpora(settings, context, sources)
    metrics: dict[str, Any] = {}
    if tier != "downstream":
        wikipedia = None if tier == "smoke" else context.data("enwiki", ENGLISH)
        metrics = _pretraining(settings, context, sources, corpora, wikipedia)
    if settings.trial is not None:
        metrics |= _downstream(settings.trial, settings, context, sources, corpora)
    return per_seed(settings.seeds, metrics)


def _corpora(settings: Settings, context: Context, sources: Sources) -> dict[str, Corpus]:
    """All tweets, and the news tweets with and without tags, in the tokens of all."""
    cleaning = PrepareConfig(preset="tweets", tokenizer_kind="bpe", vocab_size=settings.vocab_size)
    own = prepare(sources.all, context.work / "all", cleaning)
    given = {
        name: PrepareConfig(preset=preset, tokenizer=str(own.path))
        for name, preset in (("normalised", "tweets"), ("raw", "raw"))
    }
    return {"all": own} | {
        name: prepare([sources.news], context.work / name, cleaning) for name, cleaning in given.items()
    }


def _pretraining(
    settings: Settings, context: Context, sources: Sources, corpora: dict[str, Corpus], wikipedia: Path | None
) -> dict[str, Any]:
    """What became tags, what the tokenizer spends, and every arm held against unseen tweets."""
    own = corpora["all"]
    heldout = prepare([sources.unseen], context.work / "heldout", PrepareConfig(preset="raw", tokenizer=str(own.path)))
    english = english_tokenizer(wikipedia, context.work, settings.english_megabytes, own.vocab_size)
    context.log(f"tokenizers: {own.vocab_size} tokens from tweets, {english.vocab_size} from English")
    metrics = _tags(sources, own) | {
        "tokens_per_word": float(heldout.manifest["statistics"]["tokens_per_word"]),
        "tokens_per_word_english": tokens_per_word(
            [sources.unseen], context.work / "heldout-english", "raw", english.path
        ),
        "news_tokens_normalised": corpora["normalised"].train.num_tokens,
        "news_tokens_raw": corpora["raw"].train.num_tokens,
        "unigram_loss": unigram_loss(own.train, heldout.train, own.vocab_size),
    }
    context.record("dropped", own.manifest["statistics"]["dropped"])
    losses = _losses(settings, context, _trained(settings, context, corpora), heldout)
    return metrics | {
        "heldout_loss": losses["all"],
        "heldout_loss_normalised": losses["normalised"],
        "heldout_loss_raw": losses["raw"],
        "normalising_gain": [a - b for a, b in zip(losses["raw"], losses["normalised"], strict=True)],
        "spread": spread(losses["raw"], losses["normalised"]),
    }


def _downstream(
    trial: Trial, settings: Settings, context: Context, sources: Sources, corpora: dict[str, Corpus]
) -> dict[str, Any]:
    """What every arm comes to on Spanish tasks, beside encoders without pretraining."""
    invented_news = settings.vocab_size is None
    root = invented_rows(read(sources.news), context.work / "rows") if invented_news else tasks_root(trial, context)
    configs = _trained(settings, context, corpora)
    models = {name: [Path(config.out) / "model" for config in members] for name, members in configs.items()}
    return tried(trial, models, root, settings.workers, context)


def _tags(sources: Sources, own: Corpus) -> dict[str, float]:
    """Mentions and addresses in the source, their tags in the corpus, and those that stayed as they were."""
    ids = {tag: own.tokenizer.token_to_id(tag) for tag in ("<usr>", "<url>")}
    tokens = np.concatenate(
        [split.document(i) for split in (own.train, own.heldout) for i in range(split.num_documents)]
    )
    tags = {tag: int((tokens == number).sum()) for tag, number in ids.items()}
    texts = dict.fromkeys(text for file in sources.all for text in read(file))
    found = sum(len(_MENTION.findall(text)) + len(_ADDRESS.findall(text)) for text in texts)
    left = sum(len(_MENTION.findall(text)) + len(_ADDRESS.findall(text)) for text in texts_of(own))
    return {
        "found": found,
        "user_tags": tags["<usr>"],
        "url_tags": tags["<url>"],
        "left_over": left,
        "tags_per_mention": sum(tags.values()) / found,
    }


def _trained(settings: Settings, context: Context, corpora: dict[str, Corpus]) -> dict[str, list[RunConfig]]:
    """The finished runs of each arm, one a seed."""
    fields = {"eval_tokens": settings.eval_tokens, **settings.run}
    configs = train_by_seed(
        context.work, corpora, settings.stage, settings.seeds, settings.workers, context.log, **fields
    )
    runs = [config for one_seed in zip(*configs.values(), strict=True) for config in one_seed]
    context.record("curves", {Path(run.out).name: curve(run) for run in runs})
    context.record("samples", samples(configs["all"][0]))
    return configs


def _losses(
    settings: Settings, context: Context, configs: dict[str, list[RunConfig]], heldout: Corpus
) -> dict[str, list[float]]:
    """Loss of each arm over seeds, on the same unseen tweets without mentions and addresses, and the same masks."""
    max_len = settings.stage.sampling.max_len
    losses = {
        name: [loss_on(Path(c.out) / "model", heldout, heldout.train, max_len, settings.eval_tokens) for c in members]
        for name, members in configs.items()
    }
    context.record("losses", losses)
    return losses


def published(folder: Path, work: Path, emoji: str) -> Sources:
    """The published tweets; unseen ones are the news test file, with mentions and addresses cut out."""
    news = folder / NEWS.format("train")
    unseen = work / "unseen.jsonl"
    write_jsonl(unseen, without_tags(read(folder / NEWS.format("test"))))
    return Sources([folder / emoji, news], news, unseen)


def invented(work: Path) -> Sources:
    """Sentences of a small Spanish grammar with mentions and addresses, for the smoke tier."""
    draw = random.Random(0)
    who = ("El presidente", "La vecina", "Mi hermana", "Un señor", "La niña")
    does = ("anunció", "compró", "perdió", "encontró", "pidió")
    what = ("la verdad", "una canción", "el camión", "otra opción", "los años")
    texts = []
    for number in range(600):
        said = f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)} hoy {number}"
        mention = draw.choice(("", f"@user{draw.randint(1, 99)} ", "RT @noticias: ", "_usr "))
        texts.append(mention + said + draw.choice(("", f" https://t.co/{draw.getrandbits(40):x}", " _url")))
    files = [work / name for name in ("a.jsonl", "news.jsonl", "unseen.jsonl")]
    for file, part in zip(files, (texts[:250], texts[250:500], without_tags(texts[500:])), strict=True):
        write_jsonl(file, part)
    return Sources(files[:2], files[1], files[2])


def without_tags(texts: Iterable[str]) -> list[str]:
    """Texts without mentions and addresses, those of at least five words, each once."""
    cut = (" ".join(_CUT.sub(" ", html.unescape(text)).split()) for text in texts)
    return list(dict.fromkeys(text for text in cut if len(text.split()) >= 5))


def read(file: Path) -> list[str]:
    """The texts of a .jsonl or .json.gz file."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line)["text"] for line in content.splitlines()]
