"""The data statistics of the report: what was kept and why not, how long it is, how it splits into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from terrazzo.data import Corpus
from terrazzo.train.report.charts import Figure, XAxis, histogram
from terrazzo.train.report.markup import Html, aside, facts, join, nothing, section, table, tag
from terrazzo.train.report.record import RunRecord
from terrazzo.train.units import percent, plural, short, significant, whole

_BINS = 40
_SHOWN = 0.99  # of the documents lie inside the histogram


def data(run: RunRecord) -> Html:
    """Documents kept and dropped, lengths, vocabulary and fertility of the data folder."""
    if run.is_task:
        return section("Data", facts(_rows(run)))
    corpus = run.corpus
    if isinstance(corpus, str):
        return section("Data", nothing(f"No statistics. {corpus}"))
    stats = corpus.manifest.get("statistics", {})
    return section(
        "Data", tag("div", facts(_figures(corpus, stats)), _lengths(run, corpus), class_="split"), _dropped(stats)
    )


def passes(run: RunRecord) -> str:
    """How often a run went over its documents, as the end of a sentence about its tokens; nothing without the data."""
    corpus, cut = run.corpus, _longest_piece(run)
    if isinstance(corpus, str) or cut < 1:
        return ""
    lengths = corpus.train.lengths.astype(np.int64)
    once = int((lengths + 2 * -(-lengths // cut)).sum())
    times = significant(run.trained_tokens / once, 2)
    return f" (about {times} passes over {plural(corpus.train.num_documents, 'document')})"


def _rows(run: RunRecord) -> list[tuple[str, Html | str]]:
    """What a labelled task learned from and was scored on."""
    given = run.workload
    classes = given.get("task", {}).get("classes", ())
    pairs: list[tuple[str, Html | str]] = [("from", str(run.config.get("data", "?")))]
    for name, part in (("training", "train"), ("scoring", "eval")):
        pairs.append((name, plural(given.get(part, {}).get("rows", 0), "row")))
    if classes:
        shown = ", ".join(str(name) for name in classes[:8]) + (", ..." if len(classes) > 8 else "")
        pairs.append(("classes", join(whole(len(classes)), aside(shown))))
    pairs.append(("cut at", f"{whole(given.get('max_len', 0))} tokens"))
    return pairs


def _longest_piece(run: RunRecord) -> int:
    sampling = run.stages[-1].get("sampling", {}) if run.stages else {}
    return int(sampling.get("max_len", 2)) - 2


def _figures(corpus: Corpus, stats: Mapping[str, Any]) -> list[tuple[str, Html | str]]:
    documents, config = stats.get("documents", {}), corpus.manifest.get("config", {})
    pairs: list[tuple[str, Html | str]] = []
    if documents.get("read"):
        share = percent(documents["kept"] / documents["read"])
        kept = join(whole(documents["kept"]), aside(f"{share} of {whole(documents['read'])} read"))
        pairs.append(("documents", kept))
    for name, split in (("training", corpus.train), ("held out", corpus.heldout)):
        pairs.append((name, f"{whole(split.num_documents)} documents, {short(split.num_tokens)} tokens"))
    tokenizer = config.get("tokenizer_kind", "") if not config.get("tokenizer") else "as given"
    pairs.append(("vocabulary", join(whole(corpus.vocab_size), aside(tokenizer))))
    for key, name in (("tokens_per_word", "tokens a word"), ("characters_per_token", "characters a token")):
        if key in stats:
            pairs.append((name, f"{stats[key]:.2f}"))
    if "unknown_share" in stats:
        pairs.append(("unknown tokens", percent(stats["unknown_share"], 3)))
    if "preset" in config:
        pairs.append(("cleaning", config["preset"]))
    sources = [source["name"] for source in stats.get("sources", ())]
    if sources:
        more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
        pairs.append(("from", ", ".join(sources[:3]) + more))
    return pairs


def _lengths(run: RunRecord, corpus: Corpus) -> Html:
    """Document lengths up to the length that nearly all have, and how many are cut."""
    lengths, cut = corpus.train.lengths, _longest_piece(run)
    if not len(lengths):
        return nothing("No training documents.")
    shown = max(int(np.quantile(lengths, _SHOWN)), 1)
    width = -(-shown // _BINS)
    edges = np.arange(0, shown + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    figure = Figure("Document length", "% of training documents")
    drawn = histogram(
        figure, XAxis("", "", "tokens"), edges, 100 * counts / len(lengths), [(cut, f"cut at {whole(cut)}")]
    )
    longer = percent(float((lengths > cut).mean()))
    longest, median = whole(float(lengths.max())), whole(float(np.median(lengths)))
    words = f"Median {median}, longest {longest}; {longer} are longer than {whole(cut)} tokens and cut into pieces."
    return tag("div", drawn, tag("p", words, class_="note"))


def _dropped(stats: Mapping[str, Any]) -> Html | None:
    dropped, read = stats.get("dropped", {}), stats.get("documents", {}).get("read", 0)
    if not dropped or not read:
        return None
    rows = [
        [reason, whole(c["documents"]), percent(c["documents"] / read), short(c["characters"]), _example(c)]
        for reason, c in dropped.items()
    ]
    head = ["left out", "documents", "share", "characters", "for example"]
    return table(head, rows, range(1, 4))


def _example(counts: Mapping[str, Any]) -> Html | str:
    examples = [text for text in counts.get("examples", ()) if text.strip()]
    return tag("bdi", examples[0], class_="aside example") if examples else ""
