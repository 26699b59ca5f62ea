"""Long texts in overlapping windows, tokens with their characters, outputs at tokens.

Shapes: W windows, K chosen tokens, M selected tokens of a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from terrazzo.data.tokenizer import encodable
from terrazzo.packed import Packed
from terrazzo.tasks.texts import uncut

_AT_A_TIME = 4096


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text without special ones around it: ids and, in characters of the text, starts and ends."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def first_within(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """For each stretch of characters the first token that has one of them, -1 where none has.

        A token may begin before the stretch: byte-level BPE counts the space before a word to the word.
        """
        if not len(self):
            return np.full(len(starts), -1)
        found = np.minimum(np.searchsorted(self.ends, starts, side="right"), len(self) - 1)
        return np.where((self.ends[found] > starts) & (self.starts[found] < ends), found, -1)


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """The tokens of each text, uncut; many texts are split at once."""
    uncut(tokenizer)
    clean = [encodable(text) for text in texts]
    result = []
    for start in range(0, len(clean), _AT_A_TIME):
        for encoding in tokenizer.encode_batch(clean[start : start + _AT_A_TIME], add_special_tokens=False):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            result.append(Tokens(np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1]))
    return result


def windows(length: int, size: int, overlap: int) -> np.ndarray:
    """First and last-plus-one token `(W, 2)` of the fewest windows of at most `size` tokens that cover `length`.

    Neighbours share at least `overlap` tokens (at most half of `size` is honoured); all are equally long, give or take
    one token, so that none is a stump. A text without tokens has one empty window.
    """
    assert size >= 1, size
    if length <= size:
        return np.array([[0, length]])
    overlap = min(overlap, size // 2)
    count = -(-(length - overlap) // (size - overlap))
    width = -(-(length + (count - 1) * overlap) // count)
    starts = np.arange(count) * (length - width) // (count - 1)
    return np.stack([starts, starts + width], axis=1)


def most_context(windows_W2: np.ndarray, tokens_K: np.ndarray) -> np.ndarray:
    """The window `(K,)` in which each token has most context: the largest distance to the nearer of its edges.

    Windows are equally long, so that is the one whose middle is nearest; of equals the first.

    Reference: BERT's `run_squad.py`, "maximum context".
    """
    twice_middle_W = windows_W2.sum(1) - 1
    return np.searchsorted(twice_middle_W[:-1] + twice_middle_W[1:], 4 * tokens_K, side="left")


def selected_rows(outputs: Tensor, batch: Packed) -> list[np.ndarray]:
    """The outputs `(M, C)` at the selected tokens by document, float32 on the host."""
    assert batch.masked_M is not None, "the batch selects no tokens"
    ends_B = torch.searchsorted(batch.masked_M, batch.cu_seqlens[1:].long()).tolist()
    values_MC = outputs.detach().float().cpu().numpy()
    return [values_MC[start:end] for start, end in zip([0, *ends_B], ends_B, strict=False)]


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Logarithms of probabilities along an axis, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
