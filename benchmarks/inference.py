"""`encode` of Wikipedia texts with MiniLM-L6, 600 at a time, beside every other way to run it on this CPU.

Each peer is run at its best, and OpenVINO also as it is commonly used: batches of 32, one after the other.

python -m benchmarks.inference --data-root DATASETS --work WORK
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.inference_peers import BATCHES, CORES, MAX_LEN, PADDED, SENTENCE_TRANSFORMERS, Setting, prepare
from benchmarks.peers import wikipedia
from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from recipes.runner import data_root
from recipes.tuning import minilm
from terrazzo.errors import InputError
from terrazzo.runtime.bench import CLOSE, LOSSLESS, Worker
from terrazzo.runtime.machine import this_machine
from terrazzo.tasks.export import export

TEXTS, CALIBRATION, SEARCHED = 600, 300, 150
#: Share of the texts that are whole paragraphs; the others are single sentences.
PARAGRAPHS = 0.45
#: Characters of a paragraph, at least: shorter lines are headings.
LEAST = 80
OURS = ("terrazzo torch fp32", "terrazzo openvino fp32", "terrazzo openvino int8")
REFERENCE = "transformers fp32"
#: OpenVINO as it is commonly used.
COMMON = {kind: f"OpenVINO {kind}, sorted batches of 32" for kind in ("fp32", "int8")}


@dataclass
class Measured:
    """What a contestant took in each round."""

    setting: Setting
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    cosine_mean: float = 1.0
    cosine_min: float = 1.0


def mixed_texts(root: Path | None, count: int, seed: int = 0) -> list[str]:
    """Different paragraphs and single sentences of English Wikipedia, so that short texts and long ones mix.

    Raises:
        InputError: `root` holds no enwiki folder.
    """
    paragraphs = [paragraph for paragraph in wikipedia(root, 0.03 * count) if len(paragraph) >= LEAST]
    generator = np.random.default_rng(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        text = paragraphs[generator.integers(len(paragraphs))]
        if generator.random() >= PARAGRAPHS:
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
            text = sentences[generator.integers(len(sentences))]
        texts[text] = None
    return list(texts)


def prepared(work: Path, texts: Sequence[str], calibration: Sequence[str]) -> None:
    """Write texts, the peers' graphs and our exported folders, unless an earlier run has."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
    rows = work / "calibration.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in calibration), encoding="utf-8")
    if not (work / "model-int8.xml").is_file():
        prepare(minilm(), work, calibration)
    for name in OURS:
        _, runtime, precision = name.split()
        if not (work / name).is_dir():
            export(minilm(), work / name, runtime, precision, rows if precision == "int8" else None)


def worker(work: Path, name: str, setting: Setting) -> Worker:
    """The process of a contestant."""
    start = "import sys; from benchmarks.inference_worker import main; main(*sys.argv[1:])"
    return Worker([sys.executable, "-c", start, str(work), str(setting.batch), str(setting.streams), name])


def best_setting(work: Path, name: str) -> tuple[Setting, dict[str, float]]:
    """The batch size and streams at which a peer is fastest on a part of the texts, and the seconds of each tried."""
    seconds: dict[Setting, float] = {}
    for streams in sorted(set(PADDED[name][1])):
        process = worker(work, name, Setting(BATCHES[0], streams))
        try:
            for batch in [*BATCHES, *BATCHES, *BATCHES]:  # whose first runs warm up
                spent = process.ask(do="run", first=0, texts=SEARCHED, batch=batch)["seconds"]
                seconds[Setting(batch, streams)] = min(spent, seconds.get(Setting(batch, streams), spent))
        finally:
            process.close()
    return min(seconds, key=seconds.__getitem__), {_said(setting): spent for setting, spent in seconds.items()}


def measure(work: Path, settings: Mapping[str, Setting], rounds: int) -> dict[str, Measured]:
    """Every contestant in turns, a round of warm-up first; agreement with transformers in fp32.

    Every round has other texts, because runtimes prepare kernels for the shapes that they have met.
    """
    measured = {name: Measured(setting) for name, setting in settings.items()}
    workers = {name: worker(work, name, setting) for name, setting in settings.items()}
    try:
        for number in range(rounds + 1):
            for name, process in workers.items():
                seen = process.ask(do="run", first=number * TEXTS, texts=TEXTS)
                if number:
                    measured[name].seconds.append(seen["seconds"])
                    measured[name].cpu_seconds.append(seen["cpu_seconds"])
        vectors = {
            name: np.asarray(process.ask(do="vectors", texts=TEXTS)["vectors"]) for name, process in workers.items()
        }
    finally:
        for process in workers.values():
            process.close()
    for name, own_BD in vectors.items():
        other_BD = vectors[REFERENCE]
        cosines = (own_BD * other_BD).sum(1) / np.linalg.norm(own_BD, axis=1) / np.linalg.norm(other_BD, axis=1)
        measured[name].cosine_mean, measured[name].cosine_min = float(cosines.mean()), float(cosines.min())
    return measured


def fastest(measured: Mapping[str, Measured], names: Sequence[str], cosine: float) -> str | None:
    """The name with the least median seconds among those whose mean cosine is at least `cosine`."""
    agreeing = [name for name in names if name in measured and measured[name].cosine_mean >= cosine]
    return min(agreeing, key=lambda name: np.median(measured[name].seconds), default=None)


def rows_of(measured: Mapping[str, Measured]) -> list[Row]:
    """The comparisons, and the agreement of what was compared."""
    peers = [name for name in measured if name in PADDED or name == SENTENCE_TRANSFORMERS]
    close, same = fastest(measured, OURS, CLOSE), fastest(measured, OURS, LOSSLESS)
    any_peer, exact_peer = fastest(measured, peers, 0.0), fastest(measured, peers, LOSSLESS)
    assert any_peer is not None and exact_peer is not None, "a peer agrees with itself"
    what = f"texts/s of encode, {TEXTS} mixed Wikipedia texts, MiniLM-L6"
    rows = [
        _ratio("I1", f"{what}, mean cosine to fp32 at least {CLOSE}", 1.0, 1.3, measured, close, any_peer),
        _ratio("I2", f"{what}, lossless (mean cosine at least {LOSSLESS})", 1.1, 1.4, measured, same, exact_peer),
    ]
    if SENTENCE_TRANSFORMERS in measured:
        metric = f"{what}, mean cosine at least {CLOSE}"
        rows.append(_ratio("I3", metric, 3.0, 5.0, measured, close, SENTENCE_TRANSFORMERS))
    for row_id, ours, peer in (("I1a", close, COMMON["int8"]), ("I2a", same, COMMON["fp32"])):
        if peer in measured:
            rows.append(_ratio(row_id, f"{what}, as {row_id[:2]}", None, None, measured, ours, peer))
    for row_id, name, floor in (("I4", OURS[2], CLOSE), ("I4a", OURS[1], LOSSLESS), ("I4b", OURS[0], LOSSLESS)):
        if name not in measured:
            continue
        one = measured[name]
        note = f"least of {TEXTS} texts {one.cosine_min:.5f}"
        metric = f"mean cosine to {REFERENCE}, {name}"
        rows.append(
            Row(
                id=row_id,
                metric=metric,
                peer="",
                floor=floor,
                goal=None,
                value=one.cosine_mean,
                unit="",
                note=note,
            )
        )
    return rows


def _ratio(
    row_id: str,
    metric: str,
    floor: float | None,
    goal: float | None,
    measured: Mapping[str, Measured],
    ours: str | None,
    peer: str,
) -> Row:
    them = measured[peer]
    title = peer if peer not in PADDED else f"{peer}, {_said(them.setting)}: the fastest peer"
    row = Row(id=row_id, metric=metric, peer=title, floor=floor, goal=goal, status="not run (none of ours agrees)")
    if ours is None:
        return row
    us = measured[ours]
    value, low, high = bootstrap_interval(them.seconds, us.seconds)
    cpu = float(np.median(them.cpu_seconds) / np.median(us.cpu_seconds))
    note = (
        f"{ours}: {TEXTS / np.median(us.seconds):.0f} texts/s, cosine {us.cosine_mean:.4f}; {peer}: "
        f"{TEXTS / np.median(them.seconds):.0f} texts/s, cosine {them.cosine_mean:.4f}; "
        f"{cpu:.2f} in CPU time; {CORES} cores"
    )
    return dataclasses.replace(row, status="measured", value=value, low=low, high=high, note=note)


def _said(setting: Setting) -> str:
    return f"sorted batches of {setting.batch}, {setting.streams} at a time"


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """Tokens of the texts: mean, percentiles, how many are cut."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    sizes = np.asarray([len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))])
    points = dict(zip(("p5", "median", "p95"), np.percentile(sizes, [5, 50, 95]).tolist(), strict=True))
    return {"mean": float(sizes.mean()), **points, "cut": int((sizes > MAX_LEN).sum())}


def main() -> None:
    """Measure and write results/inference.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="graphs and exported folders, kept between runs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only-prepare", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=[*PADDED, SENTENCE_TRANSFORMERS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    root = data_root(options.data_root)
    if root is None:
        raise InputError("give --data-root, or set TERRAZZO_DATA, to the folder that holds enwiki")
    texts = mixed_texts(root, CALIBRATION + TEXTS * (options.rounds + 1))
    calibration, texts = texts[:CALIBRATION], texts[CALIBRATION:]
    prepared(options.work, texts, calibration)
    if options.only_prepare:
        return
    peers = options.peers or [*PADDED, SENTENCE_TRANSFORMERS]
    left_out = {} if this_machine().has_bf16 else {"transformers bf16": "this CPU has no bf16 products"}
    tried: dict[str, dict[str, float]] = {}
    settings: dict[str, Setting] = {}
    for name in peers:
        if name in PADDED and name not in left_out:
            settings[name], tried[name] = best_setting(options.work, name)
            print(f"{name}: best with {_said(settings[name])}", flush=True)
    if SENTENCE_TRANSFORMERS in peers:
        settings[SENTENCE_TRANSFORMERS] = Setting(32, 1)
    settings |= {name: Setting(32, 1) for kind, name in COMMON.items() if f"OpenVINO {kind}" in peers}
    settings |= dict.fromkeys(OURS, Setting(0, 0))  # they choose for themselves
    measured = measure(options.work, settings, options.rounds)
    for name, one in sorted(measured.items(), key=lambda item: np.median(item[1].seconds)):
        rate = TEXTS / np.median(one.seconds)
        print(f"{name:24} {rate:7.1f} texts/s, cosine {one.cosine_mean:.5f} (least {one.cosine_min:.5f})")
    write("inference", rows_of(measured), _details(measured, tried, left_out, texts), options.out)


def _details(
    measured: Mapping[str, Measured],
    tried: Mapping[str, Mapping[str, float]],
    left_out: Mapping[str, str],
    texts: Sequence[str],
) -> dict[str, Any]:
    return {
        "tokens": lengths(texts[:TEXTS]),
        "max_len": MAX_LEN,
        "contestants": {name: dataclasses.asdict(one) for name, one in measured.items()},
        "seconds_of_settings_tried": tried,
        "left_out": {
            **left_out,
            "sentence-transformers on ONNX and OpenVINO": "its conversion needs the package optimum; "
            "the same graphs are measured here without it",
        },
        "calibration_texts": CALIBRATION,
    }


if __name__ == "__main__":
    main()
