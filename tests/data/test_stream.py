"""The stream visits every piece once an epoch in an order of its own, and deals steps evenly to any number of ranks."""

import numpy as np
import pytest

from terrazzo.data.corpus import SpecialTokens
from terrazzo.data.packing import imbalance
from terrazzo.data.stream import Stream, check_deal, pieces_for_tokens
from terrazzo.errors import InputError

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


class MemorySplit:
    """Documents of log-normal lengths, as text has them."""

    def __init__(self, num_documents: int) -> None:
        draws = np.random.default_rng(0).lognormal(4.5, 1.0, num_documents)
        self.lengths = np.clip(draws, 1, None).astype(np.int32)
        self.num_documents = num_documents


def stream_of(num_documents: int = 60, pieces_per_step: int = 8, seed: int = 1, max_len: int = 64) -> Stream:
    split = MemorySplit(num_documents)
    return Stream(split, SPECIAL, max_len=max_len, pieces_per_step=pieces_per_step, seed=seed)


def test_every_epoch_holds_every_piece_once_in_its_own_order() -> None:
    stream = stream_of()
    total = len(stream.pieces)
    plans = [stream.step(t) for t in range(3 * total // 8 + 1)]
    pieces, epochs = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("pieces", "epochs"))
    assert np.array_equal(epochs, np.arange(len(epochs)) // total)
    orders = [pieces[epochs == epoch] for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(total))
    assert (orders[0] != orders[1]).mean() > 0.9 and (orders[1] != orders[2]).mean() > 0.9
    other = np.concatenate([stream_of(seed=2).step(t).pieces for t in range(total // 8)])
    assert (other != pieces[: len(other)]).mean() > 0.9


def test_a_step_is_the_same_whatever_came_before_it() -> None:
    late, again = stream_of(), stream_of()
    for t in range(50):
        late.step(t)
    for t in (50, 10**9):
        assert np.array_equal(late.step(t).pieces, again.step(t).pieces)
    assert np.array_equal(late.step(50).lengths, late.pieces.lengths(late.step(50).pieces))


@pytest.mark.parametrize(("world_size", "micro_tokens"), [(1, 64), (1, 4000), (2, 300), (3, 128), (4, 64), (8, 1000)])
def test_deal_gives_each_piece_once_within_the_limit_and_in_lockstep(world_size: int, micro_tokens: int) -> None:
    plan = stream_of(pieces_per_step=96).step(3)
    shares = plan.deal(world_size, micro_tokens)
    assert sorted(np.concatenate([part for share in shares for part in share]).tolist()) == list(range(96))
    assert len(shares) == world_size and len({len(share) for share in shares}) == 1
    for part in (part for share in shares for part in share):
        assert 0 < plan.lengths[part].sum() <= micro_tokens
        assert (np.diff(plan.lengths[part]) <= 0).all()
    fewest = -(-plan.num_tokens // (world_size * micro_tokens))
    assert len(shares[0]) <= (fewest + 1 if micro_tokens >= 128 else 96 // world_size)


def test_deal_balances_ranks_within_one_percent() -> None:
    plan = stream_of(num_documents=400, pieces_per_step=256, max_len=512).step(0)
    for world_size, micro_tokens in ((2, 4096), (4, 2048), (8, 8192)):
        shares = plan.deal(world_size, micro_tokens)
        assert imbalance(np.array([sum(plan.lengths[p].sum() for p in share) for share in shares])) <= 1.01


def test_deal_balances_ranks_where_each_micro_batch_holds_one_piece() -> None:
    plan = stream_of(num_documents=400, pieces_per_step=256, max_len=512).step(0)
    totals = [sum(plan.lengths[p].sum() for p in share) for share in plan.deal(4, 512)]
    assert imbalance(np.array(totals)) <= 1.01


def test_what_check_deal_lets_pass_can_be_dealt() -> None:
    draw = np.random.default_rng(3)
    split = MemorySplit(300)
    for _ in range(300):
        n, world_size, micro_tokens = int(draw.integers(1, 30)), int(draw.integers(1, 9)), int(draw.integers(20, 140))
        plan = Stream(split, SPECIAL, max_len=32, pieces_per_step=n, seed=0).step(int(draw.integers(0, 1000)))
        try:
            check_deal(n, 32, world_size, micro_tokens)
        except InputError:
            continue
        assert all(len(part) for share in plan.deal(world_size, micro_tokens) for part in share)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 64, 1, 63), "micro_tokens 63 does not hold a piece of 64 tokens: raise micro_tokens to at least 64"),
        ((3, 64, 4, 512), "3 pieces a step do not keep 4 ranks busy"),
        ((9, 64, 2, 127), "use a multiple of 2 pieces a step, or at least 2 with micro_tokens 128"),
    ],
)
def test_impossible_dealing_is_refused_with_the_mend(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_deal(*sizes)


def test_a_corpus_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"has \d+ pieces .* one step takes 5000 pieces: make the batch at most \d+ tok"
    ):
        stream_of(pieces_per_step=5000)


def test_pieces_for_tokens_gives_the_batch_on_average() -> None:
    split = MemorySplit(2000)
    n = pieces_for_tokens(split, SPECIAL, 64, 4096)
    stream = Stream(split, SPECIAL, max_len=64, pieces_per_step=n, seed=0)
    steps = len(stream.pieces) // n
    assert abs(np.mean([stream.step(t).num_tokens for t in range(steps)]) / 4096 - 1) < 0.02


def test_documents_of_a_step() -> None:
    stream = stream_of()
    plan = stream.step(4)
    ends = np.cumsum(-(-stream.pieces.split.lengths // 62))
    assert stream.documents(4).tolist() == sorted({int((ends <= piece).sum()) for piece in plan.pieces})
