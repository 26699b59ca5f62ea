"""Losses against torch's own and against loops written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.tasks.losses import (
    binary_cross_entropy_sum,
    class_weights,
    cross_entropy_sum,
    focal_factor,
    masked_log_softmax,
    masked_softmax,
    positive_weights,
    span_cross_entropy_sum,
    squared_error_sum,
)

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)) * 3
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])
OWN = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()[[0, 1, 1, 1, 0, 1]]


def looped(logits, labels, weights, gamma, smoothing, own):
    total = 0.0
    for z, y, mine in zip(logits.double(), labels.tolist(), own, strict=True):
        allowed = [c for c in range(len(z)) if mine[c]]
        below = sum(math.exp(z[c]) for c in allowed)
        log_p = {c: math.log(math.exp(z[c]) / below) for c in allowed}
        target = {c: smoothing / len(allowed) + (1 - smoothing) * (c == y) for c in allowed}
        loss = -sum(target[c] * weights[c].item() * log_p[c] for c in allowed)
        total += (1 - math.exp(log_p[y])) ** gamma * loss
    return torch.tensor(total)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_focus_it_is_torchs_cross_entropy_to_the_bit(weights, smoothing):
    ours = cross_entropy_sum(LOGITS, LABELS, weights, gamma=0.0, smoothing=smoothing)
    assert torch.equal(ours, F.cross_entropy(LOGITS, LABELS, weights, reduction="sum", label_smoothing=smoothing))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("own", [torch.ones_like(OWN), OWN])
def test_cross_entropy_equals_the_loop(gamma, smoothing, own):
    found = cross_entropy_sum(LOGITS, LABELS, WEIGHTS, gamma, smoothing, own)
    assert_close(found.double(), looped(LOGITS, LABELS, WEIGHTS, gamma, smoothing, own).double(), rtol=1e-5, atol=1e-5)


def test_probability_outside_the_own_problem_is_exactly_zero():
    p = masked_softmax(LOGITS * 100, OWN)
    assert (p[~OWN] == 0).all() and torch.isneginf(masked_log_softmax(LOGITS, OWN)[~OWN]).all()
    for row, z, own in zip(masked_softmax(LOGITS, OWN), LOGITS, OWN, strict=True):
        assert_close(row[own], z[own].softmax(0))


def test_other_problems_get_no_gradient_and_own_classes_a_finite_one():
    logits = (LOGITS * 40).requires_grad_()
    cross_entropy_sum(logits, LABELS, gamma=0.5, smoothing=0.1, own_BC=OWN).backward()
    assert (logits.grad[~OWN] == 0).all() and logits.grad.isfinite().all()


def test_focal_factor_stays_differentiable_at_certainty():
    log_p = torch.tensor([0.0, -1e-9, -2.0], requires_grad=True)
    focal_factor(log_p, 0.5).sum().backward()
    assert log_p.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_yes_or_no_equals_the_loop(gamma):
    targets, weights = OWN.float(), [0.5, 2.0, 1.0, 0.1, 3.0]
    expected = 0.0
    for i, row in enumerate(LOGITS.double().sigmoid().tolist()):
        for c, p in enumerate(row):
            yes = bool(targets[i, c])
            t = 0.9 if yes else 0.1
            loss = -(weights[c] * t * math.log(p) + (1 - t) * math.log(1 - p))
            expected += (1 - (p if yes else 1 - p)) ** gamma * loss / len(row)
    found = binary_cross_entropy_sum(LOGITS, targets, torch.tensor(weights), gamma, smoothing=0.2)
    assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_span_loss_and_gradient_equal_a_loop_over_documents():
    lengths, spans = (4, 1, 3), torch.tensor([[1, 3], [0, 0], [2, 2]])
    scores = (torch.randn(8, 2) * 500).requires_grad_()
    found = span_cross_entropy_sum(scores, lengths, spans)
    parts = zip(scores.split(lengths), spans, strict=True)
    expected = sum((F.cross_entropy(s.T, at, reduction="sum") for s, at in parts), torch.zeros(())) / 2
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, scores), torch.autograd.grad(expected, scores))


def test_squared_error():
    assert squared_error_sum(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == 5.0


def test_weights_average_to_one_over_the_training_rows():
    counts = [90, 9, 1]
    for wanted in ("balanced", {"b": 5.0, "c": 0.0}):
        weights = class_weights(wanted, "abc", counts)
        assert sum(n * w for n, w in zip(counts, weights, strict=True)) / 100 == pytest.approx(1)
    balanced = class_weights("balanced", "abc", counts)
    assert balanced == pytest.approx([100 / (3 * n) for n in counts])
    assert positive_weights("balanced", "ab", [10, 50], 100) == [9.0, 1.0]
    assert class_weights(None, "abc", counts) is None


def test_weights_of_what_is_no_class_are_refused():
    with pytest.raises(InputError, match="'joi' is not a class: did you mean 'joy'"):
        class_weights({"joi": 2.0}, ["joy", "anger"], [1, 1])
    with pytest.raises(InputError, match="must not be negative"):
        positive_weights({"joy": -1.0}, ["joy"], [1], 2)
    with pytest.raises(InputError, match="would weigh nothing"):
        class_weights({"joy": 0.0, "anger": 0.0}, ["joy", "anger"], [1, 1])
