"""What the recipes of compression start from: all-MiniLM-L6-v2 fine-tuned on four tasks, and rows that it never saw."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.multi_domain_chatbot.problems import clinc
from recipes.tuning import fine_tuned, minilm
from terrazzo.tasks import Example
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.rows import read_examples

#: Rows of SST-2 that are trained on, and those of its other training rows that judge beside the 872 of dev.
SST2_ROWS, SST2_JUDGING = 20_000, 3_128


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One task's rows.

    Args:
        train: what fine-tuning and recovery learn from; dev: what choices are made by.
        proof: what judges a drop, seen by neither.
    """

    train: list[Example]
    dev: list[Example]
    proof: list[Example]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A task and how its dense model is fine-tuned."""

    kind: str
    read: Callable[[Path], Rows]
    metric: str
    tuning: Mapping[str, Any] = field(default_factory=dict)


def sst2(root: Path) -> Rows:
    """SST-2 of GLUE: 20,000 rows drawn once; dev, with 3,128 other training rows that are part of none."""
    named = [_renamed(row, {"0": "negative", "1": "positive"}) for row in _glue(root, "SST-2/train.tsv", "label")]
    random.Random(0).shuffle(named)
    train, rest = named[:SST2_ROWS], named[SST2_ROWS:]
    trained = "\n".join(row.text for row in train)
    held: list[Example] = []
    for row in rest:
        if len(held) < SST2_JUDGING + 1000 and row.text not in trained:
            held.append(row)
    judged = [_renamed(row, {"0": "negative", "1": "positive"}) for row in _glue(root, "SST-2/dev.tsv", "label")]
    return Rows(train=train, dev=held[SST2_JUDGING:], proof=judged + held[:SST2_JUDGING])


def mrpc(root: Path) -> Rows:
    """MRPC of GLUE: train, dev, and the 1,725 labelled pairs of the corpus's test file."""
    fields = {"a": "#1 String", "b": "#2 String", "label": "Quality"}
    train, dev = (_glue(root, f"MRPC/{part}.tsv", "pair", fields) for part in ("train", "dev"))
    lines = (root / "glue/MRPC/msr_paraphrase_test.txt").read_text(encoding="utf-8-sig").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    proof = [Example(text=a, other=b, target=label, where=f"test {i}") for i, (label, _, _, a, b) in enumerate(cells)]
    names = {"0": "different", "1": "paraphrase"}
    train, dev, proof = ([_renamed(row, names) for row in rows] for rows in (train, dev, proof))
    return Rows(train=train, dev=dev, proof=proof)


def clinc150(root: Path) -> Rows:
    """CLINC150's 15,000, 3,000 and 4,500 in-scope rows."""
    rows = clinc(root / "clinc150" / "data_full.json")
    plain = [[dataclasses.replace(row, problem=None) for row in some] for some in (rows.train, rows.dev, rows.test)]
    return Rows(train=plain[0], dev=plain[1], proof=plain[2])


def stsb(root: Path) -> Rows:
    """STS-B of GLUE: train, dev, and the 1,379 labelled pairs of the benchmark's test file."""
    fields = {"a": "sentence1", "b": "sentence2"}
    train, dev = (_glue(root, f"STS-B/{part}.tsv", "regression", fields) for part in ("train", "dev"))
    lines = (root / "glue/STS-B/original/sts-test.tsv").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines]
    proof = [Example(text=c[5], other=c[6], target=float(c[4]), where=f"test {i}") for i, c in enumerate(cells)]
    return Rows(train=train, dev=dev, proof=proof)


DENSE = {
    "sst2": Dense(kind="label", read=sst2, metric="accuracy", tuning={"lr": (1e-4,), "epochs": 2.0}),
    "mrpc": Dense(kind="pair", read=mrpc, metric="accuracy", tuning={"lr": (2e-4,), "epochs": 5.0}),
    "clinc150": Dense(kind="label", read=clinc150, metric="accuracy", tuning={"lr": (3e-4,), "epochs": 5.0}),
    "stsb": Dense(kind="regression", read=stsb, metric="pearson", tuning={"lr": (1e-4,), "epochs": 4.0}),
}


def dense_model(
    name: str, rows: Rows, work: Path, log: Callable[[str], None], seed: int = 0, threads: int | None = None
) -> Path:
    """The task folder of MiniLM fine-tuned on a task with `seed`; what `work` holds is not trained again."""
    dense = DENSE[name]
    config = FinetuneConfig(
        model=str(minilm()),
        out=str(work / f"dense-{name}-{seed}"),
        task=dense.kind,
        seeds=1,
        seed=seed,
        keep_best=False,
        threads=threads,
        device="cpu",
        **dense.tuning,
    )
    return fine_tuned(config, rows.train, rows.dev, log)[seed]


def write_jsonl(rows: Sequence[Example], file: Path) -> Path:
    """Rows as the commands read them: `text` or `a` and `b`, and `label`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            texts = {"text": row.text} if row.other is None else {"a": row.text, "b": row.other}
            out.write(json.dumps({**texts, "label": row.target}, ensure_ascii=False) + "\n")
    return file


def _renamed(row: Example, names: Mapping[str, str]) -> Example:
    return dataclasses.replace(row, target=names.get(str(row.target), row.target))


def _glue(root: Path, file: str, kind: str, fields: Mapping[str, str] | None = None) -> list[Example]:
    return read_examples(root / "glue" / file, kind, fields or {"text": "sentence"})
