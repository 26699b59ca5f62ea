"""Batches of the authors' benchmark: lengths drawn so that they average a share of the longest allowed.

Shapes: T packed tokens, B documents, S padded length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from terrazzo.packed import Packed

#: Milliseconds of PyTorch, FasterTransformer with padding and without, and ByteTransformer, by the longest length: the
#: table of the authors' repository for batch 16 and an average of 0.6 of the longest, on an A100 in fp16.
#: Reference: github.com/bytedance/ByteTransformer, README.
PUBLISHED = {
    128: (4.97, 3.62, 3.33, 3.18),
    256: (9.56, 6.77, 5.49, 6.85),
    512: (21.0, 18.03, 13.79, 9.22),
    1024: (53.21, 50.28, 45.22, 24.70),
}


@dataclass(frozen=True)
class Mix:
    """The same documents packed and padded to `size`."""

    packed: Packed
    ids_BS: Tensor
    lengths_B: Tensor

    @property
    def size(self) -> int:
        return self.ids_BS.shape[1]

    @property
    def mask_BS(self) -> Tensor:
        """1 at real tokens, as transformers takes it."""
        positions_S = torch.arange(self.size, device=self.ids_BS.device)
        return (positions_S < self.lengths_B[:, None]).long()

    def real(self, hidden: Tensor) -> Tensor:
        """`(T, D)` states of the real tokens out of packed or padded ones."""
        return hidden if hidden.dim() == 2 else hidden[self.mask_BS.bool()]


def draw_lengths(random: np.random.Generator, documents: int, longest: int, share: float) -> np.ndarray:
    """Lengths that average `share * longest`, evenly spread as far as the longest allows; none is empty.

    Reference: the lengths of the authors' benchmark, unit_test/python_scripts/bert_transformer_test.py.
    """
    average = share * longest
    low, high = (2 * average - longest, longest) if 2 * average > longest else (0, 2 * average)
    return random.integers(max(1, round(low)), round(high), documents, endpoint=True)


def draw_mix(
    random: np.random.Generator, documents: int, longest: int, share: float, vocab_size: int, device: torch.device
) -> Mix:
    """Random tokens in documents of `draw_lengths`."""
    lengths = draw_lengths(random, documents, longest, share)
    packed = Packed.from_sequences([random.integers(0, vocab_size, length) for length in lengths])
    ids_BS = torch.zeros(documents, longest, dtype=torch.int64)
    ids_BS[packed.document_T, packed.positions_T] = packed.tokens_T
    return Mix(packed.to(device), ids_BS.to(device), torch.from_numpy(lengths).to(device))
