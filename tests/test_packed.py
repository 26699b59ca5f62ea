"""Packed holds every real token once and pads only at the edges."""

from __future__ import annotations

import pytest
import torch

from terrazzo.packed import Packed


def test_padding_round_trip() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    packed = Packed.from_padded(ids, mask)
    assert packed.lengths == (3, 1, 4) and packed.num_tokens == 8
    assert packed.tokens_T.tolist() == [5, 6, 7, 8, 1, 2, 3, 4]
    assert torch.equal(packed.to_padded(packed.tokens_T), ids)
    assert packed.positions_T.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 8]


def test_left_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="right padding"):
        Packed.from_padded(torch.tensor([[0, 5]]), torch.tensor([[0, 1]]))
