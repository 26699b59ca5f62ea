import pytest
import torch
from torch import nn
from torch.testing import assert_close

from terrazzo.nn import StackedLinear
from terrazzo.optim.adamw import AdamWConfig
from terrazzo.optim.base import optimizer_state_bytes
from terrazzo.optim.muon import MuonConfig, newton_schulz, orthogonalize
from terrazzo.optim.roles import ROLES, roles


class Net(nn.Module):
    """Tall, wide, square and stacked matrices next to everything that Muon leaves to AdamW."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(10, 16)
        self.up = nn.Linear(16, 48)
        self.square = nn.Linear(48, 48)
        self.down = nn.Linear(48, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = StackedLinear(16, 16, 3)
        self.head = nn.Linear(16, 10)


def random_gradients(*modules):
    for together in zip(*(m.parameters() for m in modules), strict=True):
        together[0].grad = torch.randn_like(together[0])
        for p in together[1:]:
            p.grad = together[0].grad.clone()


@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
def test_equals_torch_muon_on_matrices_and_adamw_on_the_rest(adjust_lr):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    config = MuonConfig(
        lr=1e-2, weight_decay=0.1, decouple_lr=False, dtype="bfloat16", adjust_lr=adjust_lr, aux=AdamWConfig()
    )
    optimizer = config.build(ours)
    parts = [nn.Parameter(part.detach().clone()) for part in theirs.qkv.weight.chunk(3)]
    matrices = [theirs.up.weight, theirs.square.weight, theirs.down.weight]
    rest = [p for p in theirs.parameters() if all(p is not m for m in (*matrices, theirs.qkv.weight))]
    muon = torch.optim.Muon([*matrices, *parts], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust_lr)
    adamw = torch.optim.AdamW(rest, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.02)
    for _ in range(3):
        random_gradients(ours, theirs)
        for part, grad in zip(parts, theirs.qkv.weight.grad.chunk(3), strict=True):
            part.grad = grad
        optimizer.step()
        muon.step()
        adamw.step()
    theirs.qkv.weight.data = torch.cat(parts).detach()
    for (name, p), q in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        # bf16 keeps 8 bits of the update: 1e-2 * 0.2 * sqrt(48) * 2^-8 a step
        assert_close(p, q[1], msg=lambda text, name=name: f"{name}: {text}", rtol=0, atol=2e-4 if p.ndim == 2 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [96, 256])
def test_singular_values_come_near_one(dtype, columns):
    update = newton_schulz(torch.randn(3, 64, columns), dtype=dtype)
    assert update.dtype == dtype
    values = torch.linalg.svdvals(update.float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_gram_shortcut_equals_the_plain_iteration():
    x = torch.linalg.svd(torch.randn(2, 32, 128), full_matrices=False)
    ill = x.U * torch.logspace(0, -6, 32) @ x.Vh
    assert_close(
        newton_schulz(ill, dtype=torch.float32),
        newton_schulz(ill.double(), dtype=torch.float64).float(),
        rtol=0,
        atol=5e-4,
    )


def one(matrix):
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return newton_schulz(wide[None], dtype=torch.float64)[0]


def test_stacked_parts_are_orthogonalised_alone():
    shapes, stacked = [(48, 16), (32, 16), (16, 32), (2, 16, 16)], [3, 1, 1, 1]
    tensors = [torch.randn(shape) for shape in shapes]
    done = orthogonalize(tensors, stacked, steps=5, dtype=torch.float64)
    expected = [
        torch.cat([one(part) for part in tensors[0].chunk(3)]),
        one(tensors[1]).mT,
        one(tensors[2]),
        torch.stack([one(part) for part in tensors[3]]),
    ]
    for got, want in zip(done, expected, strict=True):
        assert_close(got, want.float())


def test_the_update_has_the_size_of_adamws_and_the_state_half():
    net = Net()
    optimizer = MuonConfig(lr=1e-2, weight_decay=0.0, dtype="float32").build(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    random_gradients(net)
    optimizer.step()
    for name in ("up", "square", "down", "qkv"):
        moved = (net.get_parameter(f"{name}.weight") - before[f"{name}.weight"]).square().mean().sqrt()
        assert 0.15e-2 < moved < 0.25e-2, name
    sizes = {role: [net.get_parameter(n).numel() for n, r in roles(net).items() if r == role] for role in ROLES}
    rest = [size for role in ROLES if role != "matrix" for size in sizes[role]]
    assert optimizer_state_bytes(optimizer) == 4 * sum(sizes["matrix"]) + 8 * sum(rest) + 4 * len(rest)
