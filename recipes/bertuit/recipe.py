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

from recipes.arms import arm, curve, loss_on, per_seed, samples, spread, texts_of, train_arms, unigram_loss
from recipes.claims import Tier
from recipes.fertility import english_tokenizer, tokens_per_word, write_jsonl
from recipes.runner import Context
from recipes.wikipedia import SOURCE as ENGLISH
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, MuonConfig, Schedule
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage

TWEETS = "Spanish tweets, the data/*.json.gz of https://github.com/sadit/TextClassificationTutorial"
EMOJI = "emo50k.json.gz"
NEWS = "spanish-twitter-news-and-opinions-top25-68.{}.json.gz"
ROBERTA: dict[str, Any] = {"position_offset": 2, "token_types": 1}

# Our own look for what the preset should have replaced, simpler than its patterns.
_MENTION = re.compile(r"(?<!\w)@\w|(?<!\w)_usr(?!\w)")
_ADDRESS = re.compile(r"https?://|www\.\w|(?<!\w)_url(?!\w)")
_CUT = re.compile(r"^RT @\w+:|@\w+|https?:\S*|www\.\S+|\bhtt\S*…|_usr|_url")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier."""

    stage: Stage
    vocab_size: int | None = 8192
    english_megabytes: float = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_tokens: int = 65_536
    workers: int = 2
    run: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})


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
    "smoke": Settings(stage=_stage(4096, 64, 512), vocab_size=None, seeds=(0, 1), eval_tokens=2048, workers=0),
    "small": Settings(stage=_stage(750_000, 128, 2048)),
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
    """Prepare all tweets, count tags, measure fertility, train on all, and on news tweets with and without tags."""
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    wikipedia = None if tier == "smoke" else context.data("enwiki", ENGLISH)
    sources = (
        invented(context.work) if wikipedia is None else published(context.data("spanish_tweets", TWEETS), context.work)
    )
    own = prepare(
        sources.all,
        context.work / "all",
        PrepareConfig(preset="tweets", tokenizer_kind="bpe", vocab_size=settings.vocab_size),
    )
    given = str(own.path)
    corpora = {
        "all": own,
        "normalised": prepare(
            [sources.news], context.work / "normalised", PrepareConfig(preset="tweets", tokenizer=given)
        ),
        "raw": prepare([sources.news], context.work / "raw", PrepareConfig(preset="raw", tokenizer=given)),
    }
    heldout = prepare([sources.unseen], context.work / "heldout", PrepareConfig(preset="raw", tokenizer=given))
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
    losses = _train(settings, context, corpora, heldout)
    gains = [a - b for a, b in zip(losses["raw"], losses["normalised"], strict=True)]
    learning: dict[str, Any] = {
        "heldout_loss": losses["all"],
        "heldout_loss_normalised": losses["normalised"],
        "heldout_loss_raw": losses["raw"],
        "normalising_gain": gains,
        "spread": spread(losses["raw"], losses["normalised"]),
    }
    return per_seed(settings.seeds, metrics | learning)


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


def _train(settings: Settings, context: Context, corpora: dict[str, Corpus], heldout: Corpus) -> dict[str, list[float]]:
    """Loss of each arm over seeds, on the same unseen tweets without mentions and addresses, and the same masks."""
    fields = {"eval_tokens": settings.eval_tokens, **settings.run}
    configs: dict[str, list[RunConfig]] = {
        name: [arm(context.work, name, corpus.path, settings.stage, seed, **fields) for seed in settings.seeds]
        for name, corpus in corpora.items()
    }
    by_seed = [config for one_seed in zip(*configs.values(), strict=True) for config in one_seed]
    train_arms(by_seed, settings.workers, context.log)
    max_len = settings.stage.sampling.max_len
    losses = {
        name: [loss_on(Path(c.out) / "model", heldout, heldout.train, max_len, settings.eval_tokens) for c in members]
        for name, members in configs.items()
    }
    context.record("losses", losses)
    context.record("curves", {Path(c.out).name: curve(c) for c in by_seed})
    context.record("samples", samples(configs["all"][0]))
    return losses


def published(folder: Path, work: Path) -> Sources:
    """The published tweets; unseen ones are the news test file, with mentions and addresses cut out."""
    news = folder / NEWS.format("train")
    unseen = work / "unseen.jsonl"
    write_jsonl(unseen, without_tags(read(folder / NEWS.format("test"))))
    return Sources([folder / EMOJI, news], news, unseen)


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
