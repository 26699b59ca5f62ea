"""The figures of a finished data folder, for its manifest and for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.data.chunks import Tally
from terrazzo.data.corpus import SPLITS, open_split
from terrazzo.data.sources import Source

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def statistics(
    folder: Path,
    sources: Sequence[Source],
    skipped: Sequence[str],
    tally: Tally,
    counts: Sequence[Mapping[str, Any]],
    shards: Mapping[str, Sequence[Mapping[str, Any]]],
    tokenizer_seconds: float,
) -> dict[str, Any]:
    """Documents, characters, tokens, what was dropped and why, lengths, fertility, unknown tokens, seconds."""
    splits = {split: open_split(folder, shards[split]) for split in SPLITS}
    tokens = {name: split.num_tokens for name, split in splits.items()}
    documents = {name: split.num_documents for name, split in splits.items()}
    total = sum(tokens.values())
    return {
        "documents": {"read": tally.read, "kept": tally.kept, **documents},
        "characters": {"read": tally.characters_read, "kept": tally.characters},
        "words": tally.words,
        "bytes": tally.bytes,
        "tokens": tokens,
        "dropped": dict(sorted(tally.dropped.items(), key=lambda item: -item[1]["documents"])),
        "sources": [_source(source, tally) for source in sources],
        "skipped_files": list(skipped),
        "lengths": length_summary(np.concatenate([split.lengths for split in splits.values()])),
        "tokens_per_word": total / max(1, tally.words),
        "characters_per_token": tally.characters / max(1, total),
        "unknown_share": sum(count["unknown"] for count in counts) / max(1, total),
        "seconds": {
            "clean": round(tally.seconds, 3),
            "tokenizer": round(tokenizer_seconds, 3),
            "tokens": round(sum(count["seconds"] for count in counts), 3),
        },
    }


def length_summary(lengths: np.ndarray) -> dict[str, Any]:
    """Mean, extremes, quantiles and a histogram (bins double in width) of document lengths in tokens."""
    edges = 2 ** np.arange(int(lengths.max()).bit_length() + 1)
    histogram, _ = np.histogram(lengths, bins=edges)
    return {
        "mean": float(lengths.mean()),
        "min": int(lengths.min()),
        "max": int(lengths.max()),
        "quantiles": {f"{q:g}": float(np.quantile(lengths, q)) for q in _QUANTILES},
        "histogram": {"edges": edges.tolist(), "documents": histogram.tolist()},
    }


def _source(source: Source, tally: Tally) -> dict[str, Any]:
    read, kept = tally.sources.get(source.name, [0, 0])
    return {"name": source.name, "kind": source.kind, "bytes": source.size, "documents": read, "kept": kept}
