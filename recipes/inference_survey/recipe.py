"""The survey's families of techniques as one table: all that terrazzo has, on one model and the same texts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recipes.claims import Tier
from recipes.inference_survey.measure import Row, measure
from recipes.inference_survey.table import table
from recipes.inference_survey.techniques import MISSING, TECHNIQUES, Technique, Workplace, families
from recipes.runner import Context
from recipes.tuning import minilm, untrained
from recipes.wikipedia import SOURCE, documents
from terrazzo.checkpoint import load_model, load_tokenizer
from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM
from terrazzo.packed import Packed
from terrazzo.provenance import write_text_atomic
from terrazzo.runtime import TorchRuntime
from terrazzo.runtime.agreement import Judge
from terrazzo.runtime.machine import this_machine
from terrazzo.testing import tiny_texts

RESULTS = Path(__file__).with_name("results")


@config
class Settings:
    """A tier.

    Args:
        texts: that are measured; setting: other texts, that set the ranges of int8.
        singles: of the measured texts that also run alone.
        max_len: tokens after which a text is cut.
    """

    texts: int = 160
    setting: int = 150
    singles: int = 40
    rounds: int = 4
    max_len: int = 256


TIERS = {"smoke": Settings(texts=12, setting=8, singles=3, rounds=1, max_len=32), "small": Settings()}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Sizes, rates, agreement of every technique, under seed 0: nothing here is drawn.

    Raises:
        InputError: the paper tier, texts that are missing.
    """
    if tier not in TIERS:
        raise InputError("the survey reports the figures of others and has no settings to repeat; run --tier small")
    settings = TIERS[tier]
    context.record("config", settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    missing = {own: own.missing(this_machine()) for own in TECHNIQUES}
    skipped = {own: why for own, why in missing.items() if why is not None}
    rows, tokens = _rows(tier, settings, context, [own for own in TECHNIQUES if own not in skipped])
    torch.set_num_threads(threads)
    page = table(rows, skipped, tokens)
    context.log("\n" + page)
    context.record("rows", [_record(row) for row in rows])
    context.record("missing", {own.name: why for own, why in skipped.items()} | MISSING)
    if tier != "smoke":
        write_text_atomic(RESULTS / f"{tier}.md", page)
    return {0: _metrics(rows)}


def _rows(tier: Tier, settings: Settings, context: Context, techniques: Sequence[Technique]) -> tuple[list[Row], float]:
    wanted = settings.texts + settings.setting
    if tier == "smoke":
        texts = tiny_texts(wanted)
        folder = untrained(context.work / "model", texts)
    else:
        texts, folder = wikipedia(context.data("enwiki", SOURCE), wanted), minilm()
    network = load_model(folder).eval()
    encoder = network.encoder if isinstance(network, MaskedLM) else network
    tokenizer = load_tokenizer(folder, encoder.config)
    tokenizer.enable_truncation(min(settings.max_len, encoder.config.max_len))
    ids = [np.asarray(own.ids, dtype=np.int64) for own in tokenizer.encode_batch(texts)]
    measured, setting = ids[: settings.texts], [Packed.from_sequences([own]) for own in ids[settings.texts :]]
    judge = Judge(TorchRuntime(encoder, streams=1), [Packed.from_sequences([own]) for own in measured])
    shutil.rmtree(context.work / "graphs", ignore_errors=True)
    (context.work / "graphs").mkdir(parents=True)
    place = Workplace(
        encoder=encoder,
        weights=folder / "model.safetensors",
        folder=context.work / "graphs",
        setting=setting,
        judge=judge,
    )
    made = {own: own.make(place) for own in techniques}
    context.log(f"made {len(made)} ways to run one model")
    rows = measure(made, measured, settings.singles, settings.rounds, judge, context.log)
    return rows, float(np.mean([len(own) for own in measured]))


def wikipedia(folder: Path, count: int) -> list[str]:
    """Paragraphs of at least five words, spread over the first files.

    Raises:
        InputError: there are fewer.
    """
    found: list[str] = []
    for number, text in enumerate(text for text in documents(folder, paragraphs=True) if len(text.split()) >= 5):
        if number % 7 == 0:  # neighbours are of one article
            found.append(text)
        if len(found) == count:
            return found
    raise InputError(f"{folder}: {len(found)} paragraphs, {count} are wanted: add articles")


def _metrics(rows: Sequence[Row]) -> dict[str, float]:
    by_name = {row.technique.name: row for row in rows}
    low = max((by_name["openvino_int8"], by_name["onnx_int8"]), key=lambda row: row.rate)
    exact = [by_name["packed"], by_name["openvino"], by_name["onnx"]]
    compiled = max(exact[1:], key=lambda row: row.rate)
    metrics = {
        "families": len(families(TECHNIQUES)),
        "int8_size": low.made.bytes / by_name[low.technique.name.removesuffix("_int8")].made.bytes,
        "int8_speedup": low.rate / max(row.rate for row in exact),
        "int8_cosine": low.agreement.mean,
        "graph_speedup": compiled.rate / by_name["packed"].rate,
        "packed_speedup": by_name["packed"].rate / by_name["padded"].rate,
        "equal_macs_spread": equal_macs_spread(rows),
    }
    for name, row in by_name.items():
        metrics |= {f"{name}_rate": row.rate, f"{name}_latency_ms": row.latency, f"{name}_macs": row.macs}
        metrics |= {f"{name}_bytes": row.made.bytes, f"{name}_cosine": row.agreement.mean}
    return metrics


def equal_macs_spread(rows: Sequence[Row]) -> float:
    """Most over least texts a second among rows of the same multiply-adds, where that is widest."""
    rates: dict[int, list[float]] = {}
    for row in rows:
        rates.setdefault(round(row.macs), []).append(row.rate)
    return max(max(own) / min(own) for own in rates.values())


def _record(row: Row) -> dict[str, object]:
    return {
        "name": row.technique.name,
        "family": row.technique.family,
        "what": row.technique.what,
        "bytes": row.made.bytes,
        "macs": row.macs,
        "agreement": row.agreement,
        "batch_seconds": row.batch_seconds,
        "single_seconds": row.single_seconds,
        "batch_wall": row.batch_wall,
        "single_wall": row.single_wall,
    }
