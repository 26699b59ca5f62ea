"""Pieces cover every document once, in order, none too long and no needlessly short rest."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from terrazzo.data.corpus import SpecialTokens, Split
from terrazzo.data.pieces import MIN_TAIL, Pieces
from terrazzo.data.shards import Shard, ShardWriter
from terrazzo.errors import InputError

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


@dataclasses.dataclass
class MemorySplit:
    """Documents in memory with the interface of a Split; the token at place p of document d is 10 + 100 d + p."""

    lengths: np.ndarray

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> np.ndarray:
        return np.arange(10 + 100 * index, 10 + 100 * index + self.lengths[index], dtype=np.uint16)

    def slices(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        return [self.document(i)[start:stop] for i, start, stop in zip(documents, starts, stops, strict=True)]


def split_of(*lengths: int) -> MemorySplit:
    return MemorySplit(np.array(lengths, dtype=np.int32))


@pytest.mark.parametrize("max_len", [3, 4, 7, 30, 66, 128])
def test_pieces_tile_every_document(max_len: int) -> None:
    split = MemorySplit(np.arange(0, 90, dtype=np.int32))
    pieces = Pieces(split, SPECIAL, max_len)
    body = max_len - 2
    documents, starts, stops = pieces.locate(np.arange(len(pieces)))
    for document, length in enumerate(split.lengths):
        own = np.flatnonzero(documents == document)
        assert len(own) == -(-length // body)
        covered = [p for i in own for p in range(starts[i], stops[i])]
        assert covered == list(range(length))
        sizes = stops[own] - starts[own]
        assert (sizes <= body).all() and (sizes[:-2] == body).all()
        assert len(own) < 2 or sizes[-1] >= min(MIN_TAIL, body // 2)
    assert pieces.num_tokens == pieces.lengths(np.arange(len(pieces))).sum()
    assert pieces.longest == pieces.lengths(np.arange(len(pieces))).max()


def test_a_short_rest_borrows_from_the_piece_before() -> None:
    _, starts, stops = Pieces(split_of(101), SPECIAL, 52).locate(np.arange(3))
    assert list(zip(starts, stops, strict=True)) == [(0, 50), (50, 101 - MIN_TAIL), (101 - MIN_TAIL, 101)]


def test_pack_puts_cls_and_sep_around_each_piece_in_the_given_order() -> None:
    pieces = Pieces(split_of(3, 0, 45), SPECIAL, 42)
    batch = pieces.pack(np.array([2, 0]), np.array([5, 6]))
    second = [2, *range(210 + 45 - MIN_TAIL, 210 + 45), 3]
    assert batch.tokens_T.tolist() == [*second, 2, 10, 11, 12, 3]
    assert batch.lengths == (len(second), 5)
    assert batch.documents_B is not None and batch.documents_B.dtype == np.uint64
    assert batch.documents_B.tolist() == [2, 0] and batch.epoch_B.tolist() == [5, 6]


def test_pieces_of_several_shards_are_those_of_one_split(tmp_path: Path) -> None:
    memory = split_of(3, 70, 5, 1, 40)
    for name, documents in (("a", [0, 1]), ("b", [2]), ("c", [3, 4])):
        writer = ShardWriter(tmp_path, name, np.dtype(np.uint16))
        writer.add([memory.document(i).tolist() for i in documents])
        writer.close()
    stored = Split([Shard(tmp_path, name) for name in "abc"])
    order = np.array([5, 0, 3, 2, 6, 4, 1])
    first, second = (Pieces(split, SPECIAL, 32).pack(order, np.zeros(7, np.int64)) for split in (memory, stored))
    assert first.tokens_T.tolist() == second.tokens_T.tolist() and first.lengths == second.lengths


def test_a_failing_read_names_piece_and_document() -> None:
    class Damaged(MemorySplit):
        def document(self, index: int) -> np.ndarray:
            if index == 2:
                raise OSError("input/output error")
            return super().document(index)

    pieces = Pieces(Damaged(np.array([3, 4, 50], dtype=np.int32)), SPECIAL, 32)
    with pytest.raises(OSError, match="input/output error") as caught:
        pieces.pack(np.array([0, 3]), np.zeros(2, dtype=np.int64))
    assert caught.value.__notes__ == [f"while reading piece 3: tokens {50 - 20} to 50 of document 2"]


def test_max_len_beyond_int32_is_one_piece_a_document() -> None:
    pieces = Pieces(split_of(5, 70_000), SPECIAL, 10**11)
    assert len(pieces) == 2 and pieces.longest == 70_002


def test_max_len_without_room_for_text_is_refused() -> None:
    with pytest.raises(InputError, match="max_len 2 .* at least 3"):
        Pieces(split_of(5), SPECIAL, 2)
