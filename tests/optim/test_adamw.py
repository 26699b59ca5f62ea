import pytest
import torch
from torch import nn
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.optim.adamw import AdamWConfig, adamw_step


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_decay_follows_the_schedule_and_not_lr(lr):
    """Without gradients in the mean, a step at half the learning rate takes half the decay, whatever lr is."""
    net = model()
    optimizer = AdamWConfig(lr=lr, weight_decay=0.1).build(net)
    before = [p.detach().clone() for p in net.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * 0.5
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(net.parameters(), before, strict=True):
        assert_close(p.detach(), old * 0.95)


def test_equals_torch_when_decay_is_tied_to_lr():
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    a = AdamWConfig(lr=1e-2, weight_decay=0.1, decouple_lr=False, decay_norm_and_bias=False).build(ours)
    decayed = [theirs[0].weight]
    plain = [p for p in theirs.parameters() if p is not theirs[0].weight]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    b = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, foreach=False)
    for _ in range(4):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(p, q)


def test_step_by_hand():
    """After one step from zero state the bias corrections cancel: the update is g / (|g| + eps)."""
    p, g = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -0.1])
    mean, square, step = torch.zeros(2), torch.zeros(2), torch.zeros(())
    adamw_step([p], [g], [mean], [square], [step], lr=0.1, betas=(0.9, 0.98), eps=0.1, weight_decay=0.5)
    expected = torch.tensor([1.0, -2.0]) * 0.95 - 0.1 * g / (g.abs() + 0.1)
    assert_close(p, expected)
    assert step == 1
    assert_close(square, 0.02 * g**2)


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}])
def test_hyperparameters_out_of_range(fields):
    with pytest.raises(InputError, match="adamw: "):
        AdamWConfig(**fields)
