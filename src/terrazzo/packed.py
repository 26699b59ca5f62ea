"""The one batch type: every real token once, no padding.

Shapes: T packed tokens, B documents, S padded length, M masked positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of documents laid end to end.

    Args:
        tokens_T: int64 token ids, special tokens included.
        lengths: tokens of each document, on the host, so that nothing waits for a device to learn a shape.
        token_types_T: int64 segment ids for models that have them; None means all zero.
        documents_B: uint64 identities (host) that key the randomness of masks; None where no mask is drawn.
        epoch_B: int64 pass over the data (host) that each document belongs to; None means 0.
        masked_M: int64 indices into `tokens_T` whose output is wanted: masked tokens, the tokens that a tagger labels,
            or those that may begin or end an answer.
        labels_M: int64 answers at `masked_M`: original ids, or tags.
        labels_B: answer of each document: int64 `(B,)` classes, float64 `(B,)` values, float32 `(B, C)` several classes
            at once, or int64 `(B, 2)` first and last position of a span within the document.
        problems_B: int64 `(B,)` the problem that each document belongs to, where a model solves several.
    """

    tokens_T: Tensor
    lengths: tuple[int, ...]
    token_types_T: Tensor | None = None
    documents_B: np.ndarray | None = None
    epoch_B: np.ndarray | None = None
    masked_M: Tensor | None = None
    labels_M: Tensor | None = None
    labels_B: Tensor | None = None
    problems_B: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.tokens_T.dim() == 1, self.tokens_T.shape
        assert sum(self.lengths) == self.tokens_T.numel(), (sum(self.lengths), self.tokens_T.numel())
        assert min(self.lengths, default=1) > 0, "a document without tokens"

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int] | np.ndarray], **fields: object) -> Packed:
        """Pack token id sequences in the given order."""
        flat = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences])
        return cls(tokens_T=torch.from_numpy(flat), lengths=tuple(len(s) for s in sequences), **fields)  # type: ignore[arg-type]

    @classmethod
    def from_padded(cls, ids_BS: Tensor, mask_BS: Tensor, token_types_BS: Tensor | None = None) -> Packed:
        """Drop the padding of a `(B, S)` batch; `mask_BS` is nonzero at real tokens, which must be on the left."""
        keep_BS = mask_BS.bool()
        lengths = keep_BS.sum(1)
        left_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device)[None] < lengths[:, None]
        if not torch.equal(left_BS, keep_BS):
            raise ValueError("from_padded: real tokens must come first in every row (right padding)")
        types_T = None if token_types_BS is None else token_types_BS[keep_BS]
        return cls(tokens_T=ids_BS[keep_BS], lengths=tuple(lengths.tolist()), token_types_T=types_T)

    def to_padded(self, values_T: Tensor, fill: float = 0) -> Tensor:
        """`(T, ...)` values as `(B, S, ...)` with `fill` after each document's end."""
        out = values_T.new_full((self.num_documents, self.max_len, *values_T.shape[1:]), fill)
        out[self.document_T, self.positions_T] = values_T
        return out

    @property
    def num_tokens(self) -> int:
        return self.tokens_T.numel()

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    @property
    def device(self) -> torch.device:
        return self.tokens_T.device

    @cached_property
    def _host_cu_seqlens(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.asarray(self.lengths, dtype=np.int64))])

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 `(B + 1,)` offsets of the documents in `tokens_T`."""
        return torch.from_numpy(self._host_cu_seqlens.astype(np.int32)).to(self.device, non_blocking=True)

    @cached_property
    def document_T(self) -> Tensor:
        """int64 index of the document that each token belongs to."""
        rows = np.repeat(np.arange(self.num_documents), self.lengths)
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    @cached_property
    def positions_T(self) -> Tensor:
        """int64 position of each token in its own document, from 0."""
        starts = np.repeat(self._host_cu_seqlens[:-1], self.lengths)
        return torch.from_numpy(np.arange(self.num_tokens) - starts).to(self.device, non_blocking=True)

    def to(self, device: torch.device | str) -> Packed:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def replace(self, **fields: object) -> Packed:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]
