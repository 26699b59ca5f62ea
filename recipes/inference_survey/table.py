"""results/TIER.md: every technique on one model, and the families of the survey that terrazzo has none in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recipes.inference_survey.measure import Row
from recipes.inference_survey.techniques import MISSING, Technique
from scripts.docs.markdown import table as markdown

_HEADER = (
    "the survey's family",
    "technique",
    "MB to run",
    "million MACs a text",
    "one text, ms (p50)",
    "texts/s",
    "over the baseline",
    "cosine to fp32, mean (least)",
)
_NOTE = """
{texts} texts of {tokens:.0f} tokens on average, one CPU thread, CPU time, the median of {rounds} rounds in which the
techniques take turns. *MB to run* is the file that is read: the weights for PyTorch, else the graph. *MACs* are
multiply-adds of products with weights and of attention as executed, padding included. *texts/s* is in batches: of 32 as
they come for PyTorch, sorted by length as `encode` sorts them for the graphs, which pad attention. The cosine is that
of mean-pooled vectors with those of PyTorch in fp32.
"""


def table(rows: Sequence[Row], skipped: Mapping[Technique, str], tokens: float) -> str:
    """The baseline and the techniques, those that this machine lacks, then the families without any."""
    lines = [_line(row, rows[0].rate) for row in rows]
    rest = [(own.family or "", f"{own.what}; {why}") for own, why in skipped.items()] + list(MISSING.items())
    lines += [(*what, *[""] * (len(_HEADER) - 2)) for what in rest]
    note = _NOTE.format(texts=rows[0].texts, tokens=tokens, rounds=len(rows[0].batch_seconds))
    return markdown(_HEADER, lines) + "\n" + note


def _line(row: Row, base: float) -> Sequence[object]:
    return (
        row.technique.family or "",
        row.technique.what,
        f"{row.made.bytes / 1e6:.1f}",
        f"{row.macs / 1e6:,.0f}",
        f"{row.latency:.2f}",
        f"{row.rate:.0f}",
        f"{row.rate / base:.2f}x",
        f"{row.agreement.mean:.5f} ({row.agreement.worst:.5f})",
    )
