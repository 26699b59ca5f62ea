"""Dropout: how much falls out, that the mean stays, and its gradient."""

from __future__ import annotations

import pytest
import torch

from terrazzo.nn.dropout import Dropout, dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_and_the_scale(p):
    torch.manual_seed(0)
    out = dropout(torch.ones(1001, 999), p)
    dropped = out == 0
    assert abs(dropped.float().mean() - p) < 2e-3
    assert abs(dropped.view(-1)[3::4].float().mean() - p) < 4e-3, "the last of each four is drawn otherwise"
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / (1 - p)), rtol=1e-4, atol=0)
    neighbours = (dropped.view(-1)[1:] & dropped.view(-1)[:-1]).float().mean()
    assert abs(neighbours - p * p) < 2e-3, "neighbours fall out together"


def test_the_gradient_is_the_masks():
    x = torch.randn(50, 7, requires_grad=True)
    torch.manual_seed(3)
    dropout(x, 0.3).backward(torch.ones(50, 7))
    torch.manual_seed(3)
    torch.testing.assert_close(x.grad, keep_mask(x, 0.3), rtol=0, atol=0)


def test_everything_nothing_and_evaluation():
    x = torch.randn(8, 5)
    torch.testing.assert_close(dropout(x, 1.0), torch.zeros_like(x), rtol=0, atol=0)
    layer = Dropout(0.5)
    torch.testing.assert_close(layer.eval()(x), x, rtol=0, atol=0)
    assert (layer.train()(x) == 0).any() and Dropout(0.0).train()(x) is x
