"""Documents cut into pieces that fit the model, numbered through the split, and read into packed batches.

Shapes: T packed tokens, B pieces.
"""

from __future__ import annotations

import numpy as np
import torch

from terrazzo.data.corpus import SpecialTokens, Split
from terrazzo.errors import InputError
from terrazzo.packed import Packed

#: The last piece of a long document has at least this many tokens: it takes what it lacks from the piece before.
MIN_TAIL = 16


class Pieces:
    """Every document of a split as consecutive pieces of at most `max_len - 2` tokens; no token is lost or repeated.

    A document that fits is one piece, however short. A longer one is cut into full pieces and a rest; where the rest
    would be shorter than `MIN_TAIL`, the cut before it comes earlier, for a few words alone teach nothing of context.
    Memory is one int64 a document: a piece number is turned into its place by bisection.

    Args:
        split: the documents.
        special: `cls` and `sep` go around each piece.
        max_len: tokens of a piece with the two.

    Raises:
        InputError: `max_len` leaves no room for text.
    """

    def __init__(self, split: Split, special: SpecialTokens, max_len: int) -> None:
        if max_len < 3:
            raise InputError(f"max_len {max_len} leaves no room between [CLS] and [SEP]: choose at least 3")
        self.split, self.special, self.max_len = split, special, max_len
        self._body = min(max_len - 2, np.iinfo(np.int32).max)
        self._tail = min(MIN_TAIL, self._body // 2)
        self._ends = np.cumsum(-(-split.lengths // self._body), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces, special tokens included."""
        return int(self.split.lengths.sum(dtype=np.int64)) + 2 * len(self)

    @property
    def longest(self) -> int:
        """Tokens of the longest piece, special tokens included."""
        return min(int(self.split.lengths.max(initial=0)), self._body) + 2

    def locate(self, pieces_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The document of each piece and the range of its tokens in there.

        Returns:
            int64 `documents_B`, `starts_B`, `stops_B`.
        """
        documents_B = np.searchsorted(self._ends, pieces_B, side="right")
        lengths_B = self.split.lengths[documents_B].astype(np.int64)
        counts_B = -(-lengths_B // self._body)
        rank_B = pieces_B - (self._ends[documents_B] - counts_B)
        starts_B = self._cut(rank_B, counts_B, lengths_B)
        return documents_B, starts_B, self._cut(rank_B + 1, counts_B, lengths_B)

    def lengths(self, pieces_B: np.ndarray) -> np.ndarray:
        """int64 `(B,)` tokens of each piece, special tokens included."""
        _, starts_B, stops_B = self.locate(pieces_B)
        return stops_B - starts_B + 2

    def pack(self, pieces_B: np.ndarray, epoch_B: np.ndarray) -> Packed:
        """Read pieces, in the given order, as `[CLS] text [SEP]` each; the piece number is the document identity."""
        documents_B, starts_B, stops_B = self.locate(pieces_B)
        try:
            texts = self.split.slices(documents_B, starts_B, stops_B)
        except Exception as error:
            error.add_note(self._first_unreadable(pieces_B))
            raise
        dtype = texts[0].dtype
        between = np.array([self.special.sep, self.special.cls], dtype=dtype)
        parts = [between[1:], *(part for text in texts for part in (text, between))]
        parts[-1] = between[:1]
        tokens_T = np.concatenate(parts).astype(np.int64)
        return Packed(
            tokens_T=torch.from_numpy(tokens_T),
            lengths=tuple((stops_B - starts_B + 2).tolist()),
            documents_B=pieces_B.astype(np.uint64),
            epoch_B=epoch_B,
        )

    def _first_unreadable(self, pieces_B: np.ndarray) -> str:
        places = np.stack(self.locate(pieces_B))
        for piece, place_B in zip(pieces_B, places.T[..., None], strict=True):
            try:
                self.split.slices(*place_B)
            except Exception:
                document, start, stop = place_B.ravel().tolist()
                return f"while reading piece {piece}: tokens {start} to {stop} of document {document}"
        return f"while reading pieces {pieces_B.tolist()}, each of which can be read alone"

    def _cut(self, rank_B: np.ndarray, counts_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        regular_B = rank_B * self._body
        last_B = np.where(rank_B > 0, np.minimum(regular_B, lengths_B - self._tail), 0)
        return np.where(rank_B == counts_B, lengths_B, np.where(rank_B == counts_B - 1, last_B, regular_B))
