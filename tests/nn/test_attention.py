"""Every backend equals the reference; no token sees another document; windows, ALiBi, rotation are what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from terrazzo.nn.backends import BACKENDS
from terrazzo.nn.backends.flex import key_blocks
from terrazzo.nn.backends.grouped import SLACK, attend_with_dropout, group_by_length
from terrazzo.nn.positions import alibi_slopes, rotate, rotations
from terrazzo.packed import Packed

LENGTHS = (5, 140, 17, 18, 16, 1, 9, 17)
HEADS, HEAD_WIDTH = 6, 8


def batch_of(lengths: tuple[int, ...]) -> Packed:
    return Packed(tokens_T=torch.zeros(sum(lengths), dtype=torch.int64), lengths=lengths)


def attend(
    backend: str,
    qkv: torch.Tensor,
    lengths: tuple[int, ...],
    alibi: bool,
    window: int | None,
    causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    slopes = alibi_slopes(HEADS) if alibi else None
    chosen = BACKENDS[backend]
    return chosen.attend(qkv, chosen.plan(batch_of(lengths), slopes, window, causal), dropout)


def random_qkv(lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    return torch.randn(sum(lengths), 3, HEADS, HEAD_WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_equals_reference_forward_and_backward(alibi: bool, window: int | None, causal: bool) -> None:
    qkv_a, qkv_b = (random_qkv().requires_grad_() for _ in range(2))
    pairs = (("reference", qkv_a), ("grouped", qkv_b))
    out_a, out_b = (attend(name, qkv, LENGTHS, alibi, window, causal) for name, qkv in pairs)
    assert_close(out_b, out_a)
    weight = torch.randn_like(out_a)
    (out_a * weight).sum().backward()
    (out_b * weight).sum().backward()
    assert_close(qkv_b.grad, qkv_a.grad)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 6, 300])
@pytest.mark.parametrize("causal", [True, False])
def test_flex_equals_reference(window: int | None, causal: bool) -> None:
    lengths = (*LENGTHS, 150)
    assert_close(*(attend(name, random_qkv(lengths), lengths, True, window, causal) for name in ("flex", "reference")))


@pytest.mark.parametrize("name", ["reference", "grouped"])
@pytest.mark.parametrize("dropout", [0.0, 1e-7])
def test_causal_attention_is_that_of_every_prefix(name: str, dropout: float) -> None:
    """The output at a token is what it would be were the document to end there; the small dropout changes the path."""
    qkv = random_qkv((6, 9))
    out = attend(name, qkv, (6, 9), True, None, causal=True, dropout=dropout)
    for last in range(9):
        prefix = qkv[6 : 7 + last]
        assert_close(out[6 + last], attend("reference", prefix, (last + 1,), True, None)[-1])


def test_grouped_bf16_is_within_its_rounding() -> None:
    exact = attend("reference", random_qkv(), LENGTHS, True, None)
    rounded = attend("grouped", random_qkv().bfloat16(), LENGTHS, True, None).float()
    assert (rounded - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("name", ["reference", "grouped"])
def test_changing_one_document_leaves_the_others_bit_identical(name: str) -> None:
    qkv = random_qkv()
    before = attend(name, qkv, LENGTHS, True, None)
    changed = qkv.clone()
    start = sum(LENGTHS[:2])
    changed[start : start + LENGTHS[2]] = 100.0
    after = attend(name, changed, LENGTHS, True, None)
    others = torch.ones(sum(LENGTHS), dtype=torch.bool)
    others[start : start + LENGTHS[2]] = False
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_dropout_path_of_grouped_keeps_the_mean() -> None:
    backend, batch = BACKENDS["grouped"], batch_of(LENGTHS)
    plan, qkv = backend.plan(batch, alibi_slopes(HEADS), None), random_qkv()
    torch.manual_seed(0)
    mean = torch.stack([backend.attend(qkv, plan, 0.2) for _ in range(300)]).mean(0)
    assert (mean - backend.attend(qkv, plan, 0.0)).abs().mean() < 0.03


@pytest.mark.parametrize("causal", [True, False])
def test_dropout_path_of_grouped_equals_what_autograd_makes_of_it(causal: bool) -> None:
    plan = BACKENDS["grouped"].plan(batch_of(LENGTHS), alibi_slopes(HEADS), 6, causal)
    weight, found = torch.randn(sum(LENGTHS), HEADS * HEAD_WIDTH), []
    for path in (BACKENDS["grouped"].attend, attend_with_dropout):
        qkv = random_qkv().requires_grad_()
        torch.manual_seed(0)
        out = path(qkv, plan, 0.3)
        (out * weight).sum().backward()
        found.append((out, qkv.grad))
    assert_close(*found)


def test_groups_hold_every_document_once_and_waste_little() -> None:
    lengths = np.random.default_rng(0).integers(8, 129, 500)
    groups = group_by_length(lengths, SLACK)
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    padded = sum(len(g) * lengths[g].max() for g in groups)
    assert padded / lengths.sum() < 1.08


def test_key_blocks_cover_exactly_the_documents_of_a_query_block() -> None:
    lengths = (100, 300, 50, 62)
    document = np.repeat(np.arange(4), lengths)
    first, last = key_blocks(lengths, None)
    for block in range(4):
        seen = np.isin(document, document[block * 128 : (block + 1) * 128])
        blocks = np.unique(np.flatnonzero(seen) // 128)
        assert (first[block], last[block]) == (blocks.min(), blocks.max())


def test_causal_key_blocks_end_with_the_query_block() -> None:
    first, last = key_blocks((100, 300, 50, 62), None, causal=True)
    assert first.tolist() == [0, 0, 0, 0] and last.tolist() == [0, 1, 2, 3]


def test_alibi_slopes_are_the_papers() -> None:
    assert_close(alibi_slopes(8), torch.tensor([2.0**-k for k in range(1, 9)]))
    twelve = alibi_slopes(12)
    assert_close(twelve[:8], alibi_slopes(8))
    assert_close(twelve[8:], torch.tensor([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]))


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, HEAD_WIDTH)
    scores = []
    for shift in (0, 7):
        cos, sin = rotations(torch.tensor([3 + shift, 5 + shift]), HEAD_WIDTH, 10_000.0)
        scores.append((rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum())
    assert_close(scores[0], scores[1])
    cos, _ = rotations(torch.tensor([1]), HEAD_WIDTH, 10_000.0)
    assert_close(cos[0, 0], torch.tensor(math.cos(1.0)))
