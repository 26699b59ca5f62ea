"""Spanish tasks: pretrained encoders and equal ones without pretraining, tuned on rows as each arm reads text."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.runner import Context
from recipes.suites import Encoders, Trial, described, gain, scores, try_arms
from recipes.tuning import untrained_like
from terrazzo.data import filters_tweets
from terrazzo.data.cleaning import clean, preset

#: Tasks whose rows are tweets.
TWEETS = ("emoji", "accounts")
DOWNSTREAM = Trial(
    suite="spanish",
    procedures={
        "emoji": {"lr": [1e-3], "train_rows": 12_000, "eval_rows": 3000, "epochs": 1},
        "accounts": {"lr": [1e-3], "train_rows": 3000, "eval_rows": 2000, "epochs": 2, "max_len": 64},
        "conll02": {"lr": [1e-3], "train_rows": 2000, "eval_rows": 1500, "epochs": 6, "batch_size": 16},
    },
)
SMOKE = Trial(suite="spanish", procedures={task: {"epochs": 1, "batch_size": 16} for task in DOWNSTREAM.procedures})

_ENTITIES = "nltk_corpora/conll2002.zip"


def tried(
    trial: Trial, models: Mapping[str, Sequence[Path]], data_root: Path, workers: int, context: Context
) -> dict[str, Any]:
    """Fine-tune every arm of `models` and an untrained one like `all`; returns the metrics of the claims.

    Rows for the arm `raw` are as they lie under `data_root`; for the others, mentions and addresses are tags.
    """
    tagged = with_tags(data_root, context.work / "tagged")
    untrained = [
        untrained_like(model, context.work / "untrained" / str(seed), seed) for seed, model in enumerate(models["all"])
    ]
    arms = {
        "all": Encoders(models["all"], tagged, tuple(trial.procedures)),
        "untrained": Encoders(untrained, tagged, tuple(trial.procedures)),
        "normalised": Encoders(models["normalised"], tagged, TWEETS),
        "raw": Encoders(models["raw"], data_root, TWEETS),
    }
    outcomes = try_arms(trial, arms, context.work / "tasks", workers, context.log)
    context.record("tasks", described(outcomes))
    return {
        **scores(outcomes),
        **gain("pretraining", outcomes, "all", "untrained"),
        **gain("normalising", outcomes, "normalised", "raw"),
    }


def with_tags(root: Path, out: Path) -> Path:
    """A copy of the tasks' files in which every tweet reads as the preset leaves it, tweets of tags alone, too."""
    steps = [step for step in preset("tweets").filters if step is not filters_tweets.more_than_tags]
    for file in sorted((root / "spanish_tweets").glob("*.t*.json.gz")):
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        write_rows(out / "spanish_tweets" / file.name, ({**row, "text": clean(row["text"], steps)[0]} for row in rows))
    (out / _ENTITIES).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / _ENTITIES, out / _ENTITIES)
    return out


def invented_rows(texts: Sequence[str], root: Path) -> Path:
    """A data root with rows of every task, for the smoke tier; answers are single words of the texts."""
    halves = {"train": texts[:32], "test": texts[32:64]}
    news = "spanish-twitter-news-and-opinions-top25-68"
    for part, rows in halves.items():
        tweets = [{"text": text, "klass": "😀" if len(text) % 2 else "♡"} for text in rows]
        write_rows(root / "spanish_tweets" / f"emojispace.{part}.json.gz", tweets)
        tweets = [{"text": text, "screen_name": "una" if len(text) % 2 else "otra"} for text in rows]
        write_rows(root / "spanish_tweets" / f"{news}.{part}.json.gz", tweets)
    (root / _ENTITIES).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / _ENTITIES, "w") as archive:
        for part, name in (("train", "train"), ("test", "testb")):
            archive.writestr(f"conll2002/esp.{name}", "\n".join(map(_tagged, halves[part])))
    return root


def write_rows(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """One object a line, compressed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(lines.encode(), mtime=0))


def _tagged(text: str) -> str:
    return "".join(f"{word} NC {'B-PER' if word in ('vecina', 'hermana') else 'O'}\n" for word in text.split())
