"""The folders that the recipe works on: clean novels, the same with dirt among them, novels of unseen authors."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.gottbert.planted import planted
from terrazzo.data.readers import read_txt
from terrazzo.testing import tiny_texts

#: Authors whose novels are never trained on.
UNSEEN = ("fontane", "kafka", "spyri")

_WHO = ("Der alte Müller", "Die junge Gräfin", "Ein müder Wanderer", "Das stille Mädchen", "Der fröhliche Schäfer")
_DOES = ("ging langsam durch", "blickte lange über", "träumte oft von", "wohnte früher hinter", "erzählte uns gern von")
_WHAT = ("dem dunklen Wald", "den grünen Hügeln", "der schönen Stadt", "dem großen Fluss", "den weißen Bergen")
_AND = (
    "und dachte dabei an seine Mutter",
    "weil es draußen schon kühl wurde",
    "bis die Glocken läuteten",
    "ohne ein Wort zu sagen",
)


@dataclass(frozen=True)
class Novels:
    """Paragraphs by novel, those of unseen authors, and foreign paragraphs."""

    training: dict[str, list[str]]
    unseen: dict[str, list[str]]
    foreign: list[str]


@dataclass(frozen=True)
class Dirty:
    """A folder of novels with planted files in it; `mended` is what the mojibake was before it was broken."""

    folder: Path
    clean: list[str]
    planted: dict[str, list[str]]
    mended: list[str]


def novels(folder: Path, english: Path, megabytes: float) -> Novels:
    """The shortest novels up to `megabytes`, without those of UNSEEN authors; foreign text from English Wikipedia."""
    files = sorted(folder.glob("*.txt"), key=lambda file: (file.stat().st_size, file.name))
    training, size = {}, 0
    for file in files:
        if not file.name.startswith(UNSEEN) and size < megabytes * 2**20:
            training[file.stem] = _paragraphs(file)
            size += file.stat().st_size
    unseen = {file.stem: _paragraphs(file) for file in files if file.name.startswith(UNSEEN)}
    foreign = [line for line in _english_lines(english) if len(line) >= 80]
    return Novels(training, unseen, foreign)


def invented_novels() -> Novels:
    """Sentences of a small German grammar, for the smoke tier."""
    texts = _invented(700)
    foreign = [" ".join(pair) for pair in zip(tiny_texts(60), tiny_texts(60, seed=1), strict=True)]
    return Novels({"a": texts[:300], "b": texts[300:600]}, {"c": texts[600:]}, foreign)


def write_dirty(source: Novels, folder: Path, share: float) -> Dirty:
    """Write training novels, with planted documents as `share` of the whole in files of their own."""
    total = sum(map(len, source.training.values()))
    count = min(round(total * share / (1 - share) / 6), len(source.foreign))
    usable = [text for texts in source.training.values() for text in texts if len(text) >= 80 and not text.isascii()]
    reserved = random.Random(0).sample(sorted(set(usable)), min(2 * count, len(set(usable)) // 4))
    count = len(reserved) // 2
    taken = set(reserved)
    clean = {name: [text for text in texts if text not in taken] for name, texts in source.training.items()}
    dirt = planted(reserved, source.foreign, count)
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in {**clean, **{f"planted_{kind}": texts for kind, texts in dirt.items()}}.items():
        write_paragraphs(folder / f"{name}.txt", texts)
    return Dirty(folder, [text for texts in clean.values() for text in texts], dirt, reserved[count : 2 * count])


def write_unseen(source: Novels, folder: Path) -> Path:
    """Write the novels of unseen authors."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in source.unseen.items():
        write_paragraphs(folder / f"{name}.txt", texts)
    return folder


def write_paragraphs(file: Path, texts: list[str]) -> None:
    """Documents of one line each, with blank lines between them."""
    file.write_text("\n\n".join(" ".join(text.split()) for text in texts) + "\n", encoding="utf-8")


def normal(text: str) -> str:
    """A text as it looks after any harmless cleaning."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _paragraphs(file: Path) -> list[str]:
    with open(file, "rb") as stream:
        return list(read_txt(stream, file.name, "paragraph"))


def _english_lines(folder: Path) -> Iterator[str]:
    with open(sorted(folder.glob("*.jsonl"))[0], encoding="utf-8") as rows:
        for row in rows:
            yield from json.loads(row)["text"].split("\n")


def _invented(count: int) -> list[str]:
    draw = random.Random(0)
    parts = (_WHO, _DOES, _WHAT, _AND)
    return [
        " ".join(" ".join(map(draw.choice, parts)) + "." for _ in range(draw.randint(2, 4))) + f" Kapitel {number}."
        for number in range(count)
    ]
