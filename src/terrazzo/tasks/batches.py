"""Documents of labelled rows laid end to end, and which of them run together.

Shapes: T packed tokens, B documents, M selected tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from terrazzo.errors import InputError
from terrazzo.packed import Packed
from terrazzo.tasks.task import Encoded


def collate(documents: Sequence[Encoded]) -> Packed:
    """The batch of some documents, in their order; labels go in where every document has one.

    Documents with `positions` give `masked_M`, and `labels_M` for the tags there; a label of two dimensions is the
    document's own and gives `labels_B`, as those of documents without positions do.
    """
    lengths = [len(document.ids) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    labels = [document.label for document in documents if document.label is not None]
    positions = [start + d.positions for start, d in zip(starts, documents, strict=True) if d.positions is not None]
    problems = [document.problem for document in documents if document.problem is not None]
    selects, labelled = len(positions) == len(documents), len(labels) == len(documents)
    tags = selects and labelled and all(label.ndim == 1 for label in labels)
    own = [label[0] if label.ndim == 2 else label for label in labels]
    return Packed.from_sequences(
        [document.ids for document in documents],
        token_types_T=_token_types(documents),
        masked_M=torch.from_numpy(np.concatenate(positions)) if selects else None,
        labels_M=torch.from_numpy(np.concatenate(labels)) if tags else None,
        labels_B=torch.from_numpy(np.stack(own)) if labelled and not tags else None,
        problems_B=torch.tensor(problems) if len(problems) == len(documents) else None,
    )


def _token_types(documents: Sequence[Encoded]) -> Tensor | None:
    if all(document.token_types is None for document in documents):
        return None
    types = [np.zeros(len(d.ids), dtype=np.int64) if d.token_types is None else d.token_types for d in documents]
    return torch.from_numpy(np.concatenate(types))


def by_budget(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of documents, longest first, in runs of at most `batch_tokens` tokens or of one document; none empty.

    Longest first, so that a budget beyond the memory fails at once.

    Raises:
        InputError: a budget below 1.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens}: must be at least 1")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    ends, first = np.cumsum(sizes[order]), 0
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + batch_tokens, side="right")))
        yield order[first:last]
        first = last


def by_shares(lengths: Sequence[int], batch_tokens: int, streams: int = 1, pads: bool = False) -> Iterator[np.ndarray]:
    """As `by_budget`, for `streams` that take the next batch whenever they are free and should end together.

    Towards the end batches shrink with what is left, down to a quarter, so that no stream waits long for the last one.

    Args:
        pads: whether every document of a batch costs as much as the longest.

    Reference: Polychronopoulos and Kuck, Guided self-scheduling (1987), section 3, with twice the streams.
    """
    if streams == 1 and not pads:
        yield from by_budget(lengths, batch_tokens)
        return
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens}: must be at least 1")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    ends, first = np.cumsum(sizes[order]), 0
    while first < len(order):
        before = ends[first - 1] if first else 0
        left = int(ends[-1] - before)
        budget = batch_tokens if streams == 1 else min(batch_tokens, max(left // (2 * streams), batch_tokens // 4))
        fits = first + budget // int(sizes[order[first]])
        last = max(first + 1, fits if pads else int(np.searchsorted(ends, before + budget, side="right")))
        yield order[first:last]
        first = last
