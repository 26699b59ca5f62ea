"""What padding costs a training step, and what grouping documents by length saves attention.

All variants of a round take the same documents in turn, so that neighbours on a shared machine slow them alike.

Shapes: T packed tokens, N heads, H head width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from recipes.padded import pad_batch, register
from terrazzo.data import Corpus, Loader, Stream
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.nn.backends import BACKENDS, grouped
from terrazzo.nn.positions import alibi_slopes
from terrazzo.objectives import MLMConfig
from terrazzo.packed import Packed

Grouping = Callable[[np.ndarray], list[np.ndarray]]
#: The paper's limits of the groups.
LIMITS = (128, 256, 384, 512)


def one_group(lengths: np.ndarray) -> list[np.ndarray]:
    """Every document at the length of the longest."""
    return [np.argsort(lengths, kind="stable")]


def four_groups(lengths: np.ndarray) -> list[np.ndarray]:
    """The paper's groups, each run at its own longest document."""
    group_B = np.searchsorted(LIMITS, lengths)
    return [np.flatnonzero(group_B == group) for group in np.unique(group_B)]


GROUPINGS: dict[str, Grouping] = {
    "one_group": one_group,
    "four_groups": four_groups,
    "fine_groups": partial(grouped.group_by_length, slack=grouped.SLACK),
}


@contextmanager
def grouping(function: Grouping) -> Iterator[None]:
    """Let the grouped attention cut its groups by `function`."""
    with patch.object(grouped, "group_by_length", lambda lengths, *_: function(lengths)):
        yield


def batches_of(corpus: Corpus, config: EncoderConfig, pieces: int, count: int, seed: int) -> list[Packed]:
    """`count` masked batches of `pieces` documents each, as training reads them."""
    objective = MLMConfig().build(corpus.special, corpus.vocab_size)
    stream = Stream(corpus.train, corpus.special, max_len=config.max_len, pieces_per_step=pieces, seed=seed)
    loader = Loader(stream, objective, micro_tokens=pieces * config.max_len, workers=0)
    return [next(loader).batches[0] for _ in range(count)]


def step_times(corpus: Corpus, config: EncoderConfig, batches: Sequence[Packed]) -> dict[str, list[float]]:
    """CPU seconds of forward, backward and update, unpadded and padded to `max_len`, for each batch but the first."""
    pad = corpus.special.pad
    backends: dict[str, str | None] = {"unpadded": None, "padded": register(pad)}
    models = {name: MaskedLM(config, backend) for name, backend in backends.items()}
    optimizers = {name: torch.optim.AdamW(model.parameters(), fused=True) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn, batch in enumerate(batches):
        for name, model in models.items():
            begin = time.process_time()
            given = pad_batch(batch, config.max_len, pad) if name == "padded" else batch
            _step(model, optimizers[name], given)
            if turn:
                seconds[name].append(time.process_time() - begin)
    return seconds


def attention_times(config: EncoderConfig, batches: Sequence[Packed]) -> dict[str, list[float]]:
    """CPU seconds of plan, forward and backward of attention under each grouping, for each batch but the first."""
    slopes_N = alibi_slopes(config.num_heads)
    seconds: dict[str, list[float]] = {name: [] for name in GROUPINGS}
    for turn, batch in enumerate(batches):
        qkv_T3NH = torch.randn(batch.num_tokens, 3, config.num_heads, config.head_width, requires_grad=True)
        upstream = torch.randn(batch.num_tokens, config.width)
        for name, function in GROUPINGS.items():
            begin = time.process_time()
            with grouping(function):
                plan = BACKENDS["grouped"].plan(batch, slopes_N, None)
                BACKENDS["grouped"].attend(qkv_T3NH, plan, 0.0).backward(upstream)
            if turn:
                seconds[name].append(time.process_time() - begin)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over batches of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _step(model: MaskedLM, optimizer: torch.optim.Optimizer, batch: Packed) -> None:
    total, _ = model.masked_loss(batch)
    assert batch.masked_M is not None
    (total / batch.masked_M.numel()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
