"""What every optimizer must do, over all of them."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.optim import OPTIMIZERS, LionConfig, OptimizerConfig, optimizer_state_bytes
from terrazzo.optim.roles import roles

every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def tiny():
    return MaskedLM(mosaicbert("tiny", 64, width=16, num_heads=2, mlp_width=32, depth=1))


def random_gradients(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@every_optimizer
def test_groups_carry_role_and_base_lr_and_hold_every_parameter_once(kind):
    model = tiny()
    optimizer = OPTIMIZERS[kind]().build(model)
    held = {name: group["role"] for group in optimizer.param_groups for name in group["param_names"]}
    assert held == roles(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(held)
    assert all(group["base_lr"] == group["lr"] > 0 and group["name"] for group in optimizer.param_groups)


@every_optimizer
def test_layers_without_heads_or_inner_units_are_no_trouble(kind):
    model = MaskedLM(mosaicbert("tiny", 64, width=16, num_heads=2, depth=2, kept_heads=((), (1,)), mlp_widths=(5, 0)))
    before = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS[kind]().build(model)
    random_gradients(model)
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all() and (not tensor.numel() or not torch.equal(tensor, before[name])), name


@every_optimizer
def test_state_resumes_bit_for_bit(kind, tmp_path):
    model = tiny()
    optimizer = OPTIMIZERS[kind]().build(model)
    random_gradients(model)
    optimizer.step()
    twin = copy.deepcopy(model)
    resumed = OPTIMIZERS[kind]().build(twin)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        random_gradients(model)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        resumed.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(p, q, rtol=0, atol=0)
    assert optimizer_state_bytes(optimizer) == optimizer_state_bytes(resumed) > 0


@every_optimizer
def test_a_parameter_without_gradient_keeps_still(kind):
    model = tiny()
    optimizer = OPTIMIZERS[kind]().build(model)
    random_gradients(model)
    still = [model.encoder.embeddings.tokens.weight, model.encoder.blocks[0].mlp.up.weight]
    before = [p.detach().clone() for p in still]
    for p in still:
        p.grad = None
    optimizer.step()
    for p, old in zip(still, before, strict=True):
        assert_close(p.detach(), old, rtol=0, atol=0)
        assert p not in optimizer.state
    assert len(optimizer.state) == len(list(model.parameters())) - 2


@every_optimizer
def test_frozen_parameters_are_left_out(kind):
    model = tiny()
    model.encoder.embeddings.requires_grad_(False)
    optimizer = OPTIMIZERS[kind]().build(model)
    assert not any("embeddings" in name for group in optimizer.param_groups for name in group["param_names"])


class NoHostSync(TorchDispatchMode):
    """Fails on every operation that would make the host wait for a device."""

    FORBIDDEN = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in self.FORBIDDEN, func._schema.name
        return func(*args, **(kwargs or {}))


@every_optimizer
def test_no_step_waits_for_the_device(kind):
    model = tiny()
    optimizer = OPTIMIZERS[kind]().build(model)
    random_gradients(model)
    with NoHostSync():
        optimizer.step()
        optimizer.step()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSync():
        torch.ones(()).item()


@every_optimizer
def test_a_quadratic_goes_down(kind):
    """min |W x - y|^2, to a quarter of its start."""
    model = nn.Linear(8, 8)
    optimizer = OPTIMIZERS[kind](lr=2e-2).build(model)
    x, y = torch.randn(64, 8), torch.randn(64, 8) * 0.1
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind != "adamw"])
def test_sparse_gradients_are_refused(kind):
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4))
    optimizer = OPTIMIZERS[kind]().build(model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="'embedding' has sparse gradients"):
        optimizer.step()


def test_config_from_plain_values():
    assert from_dict(OptimizerConfig, {"kind": "lion", "lr": 1e-4}) == LionConfig(lr=1e-4)
    for kind, cls in OPTIMIZERS.items():
        assert from_dict(OptimizerConfig, to_dict(cls())) == cls(kind=kind)
    with pytest.raises(InputError, match="did you mean 'weight_decay'"):
        from_dict(OptimizerConfig, {"kind": "lion", "weight_decy": 1e-4})
    with pytest.raises(InputError, match="did you mean 'betas'"):
        from_dict(OptimizerConfig, {"kind": "muon", "aux": {"beta": 0.9}})
    with pytest.raises(InputError, match="muon: lr must be positive, got -1"):
        from_dict(OptimizerConfig, {"kind": "muon", "lr": -1})
