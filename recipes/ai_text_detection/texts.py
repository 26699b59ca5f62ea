"""Human and machine texts by prompt, domain and generator; splits that keep a prompt on one side; the paper's
preprocessing."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HUMAN = "human"
_MARKS = re.compile(r"@[A-Z]+\d*|\[[^\]]{1,40}\]")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text, who wrote it, and in answer to what."""

    text: str
    generator: str
    domain: str
    prompt: str

    @property
    def label(self) -> str:
        """ "human" or "machine"."""
        return HUMAN if self.generator == HUMAN else "machine"


def essays(folder: Path) -> list[Document]:
    """Students' essays and ChatGPT's on the same six questions.

    Marks that only one side can carry go: the anonymised names of the students (@MONTH1), the blanks of the machine
    ([Name]).
    """
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = {question: str(i) for i, question in enumerate(sorted({line["question"] for line in lines}))}
    found = [
        _essay(line["answer"], "gpt-3.5-turbo" if line["chatgpt"] else HUMAN, numbers[line["question"]])
        for line in lines
    ]
    with open(folder / "dataset-chatgpt.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = _questions_of_sets(rows, [document for document in found if document.generator != HUMAN])
    known = {document.text for document in found}
    more = [_essay(row["essay"], "gpt-3.5-turbo", sets[row["essay_set"]]) for row in rows]
    return found + [document for document in more if document.text not in known]


def _essay(text: str, generator: str, prompt: str) -> Document:
    return Document(text=" ".join(_MARKS.sub(" ", text).split()), generator=generator, domain="essays", prompt=prompt)


def _questions_of_sets(rows: Sequence[dict[str, str]], machine: Sequence[Document]) -> dict[str, str]:
    """Which question each essay set answers: that of the essays which both files hold."""
    question = {document.text: document.prompt for document in machine}
    found: dict[str, str] = {}
    for row in rows:
        text = _essay(row["essay"], "", "").text
        if text in question:
            found[row["essay_set"]] = question[text]
    return found


def continuations(folder: Path) -> list[Document]:
    """Beginnings of news, stories, contexts and abstracts continued by their author and by language models.

    Author and model share the first words, which are the prompt.
    """
    found: dict[tuple[str, str], Document] = {}
    for file in sorted(folder.glob("*.raw_data.json")):
        domain, generator = file.name.removesuffix(".raw_data.json").split("_", 3)[2:]
        both = json.loads(file.read_text(encoding="utf-8"))
        for writer, texts in ((HUMAN, both["original"]), (generator, both["sampled"])):
            for text in texts:
                prompt = " ".join(text.split()[:12])
                key = (f"{domain} {writer} {prompt}", text if writer != HUMAN else "")
                found.setdefault(
                    key, Document(text=" ".join(text.split()), generator=writer, domain=domain, prompt=prompt)
                )
    return list(found.values())


def held_out(prompt: str, share: float, seed: int) -> bool:
    """Whether a prompt, and with it every text that answers it, is kept for testing."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def balanced(documents: Iterable[Document], most: int, seed: int) -> list[Document]:
    """As many human as machine texts, at most `most` in all, in an order that the seed decides."""
    ordered = sorted(documents, key=lambda d: hashlib.sha256(f"{seed} {d.generator} {d.text}".encode()).digest())
    human = [d for d in ordered if d.label == HUMAN]
    machine = [d for d in ordered if d.label != HUMAN]
    count = min(len(human), len(machine), most // 2)
    return [document for pair in zip(human[:count], machine[:count], strict=True) for document in pair]


def length_matched(documents: Iterable[Document], slack: float = 0.05) -> list[Document]:
    """Pairs of a human and a machine text whose numbers of words differ by at most `slack`, each text once."""
    human = sorted((d for d in documents if d.label == HUMAN), key=_words)
    machine = sorted((d for d in documents if d.label != HUMAN), key=_words)
    pairs, j = [], 0
    for document in human:
        while j < len(machine) and _words(machine[j]) < _words(document) * (1 - slack):
            j += 1
        if j < len(machine) and _words(machine[j]) <= _words(document) * (1 + slack):
            pairs += [document, machine[j]]
            j += 1
    return pairs


def preprocessed(documents: Sequence[Document]) -> list[Document]:
    """The paper's normalisation: lower case, no stop words, no digits, stems, single spaces.

    The list of stop words (scikit-learn's) and the stemmer (Snowball's Porter) are ours; the paper names none.

    Reference: arXiv 2405.16422, the section on data preprocessing.
    """
    import snowballstemmer
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stem = snowballstemmer.stemmer("porter").stemWord

    def normal(text: str) -> str:
        words = re.findall(r"[^\W\d_]+", text.lower())
        return " ".join(stem(word) for word in words if word not in ENGLISH_STOP_WORDS) or "empty"

    return [replace(document, text=normal(document.text)) for document in documents]


def _words(document: Document) -> int:
    return len(document.text.split())
