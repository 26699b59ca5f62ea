"""results/TIER.md: every technique on one model, and the families of the survey that terrazzo has none in."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.inference_survey.measure import Row
from recipes.inference_survey.techniques import MISSING
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
    "note",
)
_NOTE = """
{texts} texts of {tokens:.0f} tokens on average, one CPU thread, CPU time, the median of {rounds} rounds in which the
techniques take turns. *MB to run* is the file that is read: the weights for PyTorch, else the graph. *MACs* are
multiply-adds of products with weights and of attention as executed, padding included. *texts/s* is in batches: of 32 as
they come for PyTorch, sorted by length as `encode` sorts them for the graphs, which pad attention. The cosine is that
of mean-pooled vectors with those of PyTorch in fp32.
"""


def table(rows: Sequence[Row], tokens: float) -> str:
    """The baseline, the techniques by family, then the families without one."""
    base = rows[0].rate
    lines = [_line(row, base) for row in rows]
    lines += [(family, why, *[""] * 7) for family, why in MISSING.items()]
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
        row.made.note,
    )
