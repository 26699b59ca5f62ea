"""Learning rates by layer and by role: the formula, neutral values, weight decay, refusals."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from terrazzo.config import from_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, mosaicbert
from terrazzo.optim import OPTIMIZERS, AdamWConfig, LionConfig, OptimizerConfig, StableAdamWConfig
from terrazzo.optim.roles import ROLES, layers_above, roles

CONFIG = mosaicbert("tiny", 64, width=16, num_heads=2, mlp_width=32, depth=3, norm_placement="pre", final_norm=True)
KEYS = ("name", "role", "lr", "base_lr", "weight_decay")
layered = pytest.mark.parametrize("cls", [AdamWConfig, StableAdamWConfig, LionConfig])


class Classifier(nn.Module):
    """An encoder with a head that has blocks and embeddings of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(CONFIG)
        self.head = nn.ModuleDict({"embeddings": nn.Embedding(4, 16), "blocks": nn.ModuleList([nn.Linear(16, 2)])})


def rates_of(optimizer):
    return {name: group["base_lr"] for group in optimizer.param_groups for name in group["param_names"]}


@layered
@pytest.mark.parametrize("model", [MaskedLM(CONFIG), Classifier(), Encoder(CONFIG)], ids=lambda m: type(m).__name__)
def test_rates_follow_the_formula(cls, model):
    optimizer = cls(lr=1e-2, layer_decay=0.5, rates={"norm": 3.0, "head": 10.0}).build(model)
    found = rates_of(optimizer)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, rate in found.items():
        local = name.removeprefix("encoder.")
        expected = 1e-2 * {"norm": 3.0, "head": 10.0}.get(roles(model)[name], 1.0)
        if local.startswith("blocks."):
            expected *= 0.5 ** (CONFIG.depth - 1 - int(local.split(".")[1]))
        if local.startswith("embeddings."):
            expected *= 0.5**CONFIG.depth
        assert rate == pytest.approx(expected), name
    assert all(group["lr"] == group["base_lr"] for group in optimizer.param_groups)
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)


def test_only_an_encoder_has_layers():
    assert set(layers_above(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))).values()) == {0}


@layered
def test_neutral_values_change_nothing(cls):
    """One group a role, in the order of the roles, with lr as it is; the same bits after steps."""
    models = [MaskedLM(CONFIG), MaskedLM(CONFIG)]
    models[1].load_state_dict(models[0].state_dict())
    plain = cls(lr=1e-3, weight_decay=0.1).build(models[0])
    neutral = cls(lr=1e-3, weight_decay=0.1, rates=dict.fromkeys(ROLES, 1.0)).build(models[1])
    exempt = () if cls().decay_norm_and_bias else ("norm", "bias")
    for optimizer in (plain, neutral):
        assert [{key: group[key] for key in KEYS} for group in optimizer.param_groups] == [
            dict(zip(KEYS, (role, role, 1e-3, 1e-3, 0.0 if role in exempt else 0.1 / 1e-3), strict=True))
            for role in ROLES
        ]
    for _ in range(2):
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        plain.step()
        neutral.step()
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models), strict=True))


@layered
@pytest.mark.parametrize("decouple", [True, False])
def test_weights_decay_alike_in_every_layer_unless_tied_to_the_rate(cls, decouple):
    model = MaskedLM(CONFIG)
    fields = {"decouple_lr": decouple, "decay_norm_and_bias": True}
    optimizer = cls(lr=0.5, weight_decay=0.1, layer_decay=0.5, rates={"head": 4.0}, **fields).build(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * 0.5
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    rates = rates_of(optimizer)
    for name, p in model.named_parameters():
        share = 0.1 * 0.5 if decouple else 0.1 * 0.5 * rates[name]
        assert_close(p.detach(), before[name] * (1 - share), msg=name)


def test_bad_rates_are_named():
    with pytest.raises(InputError, match=r"adamw: layer_decay lies in \(0, 1\], got 0"):
        AdamWConfig(layer_decay=0.0)
    with pytest.raises(InputError, match="lion: rates.heads: .*did you mean 'head'"):
        LionConfig(rates={"heads": 2.0})
    with pytest.raises(InputError, match="rates.head must be positive, got 0"):
        from_dict(OptimizerConfig, {"kind": "stable_adamw", "rates": {"head": 0.0}})
    with pytest.raises(InputError, match="optimizer.kind=adamw"):
        OPTIMIZERS["muon"](aux=AdamWConfig(layer_decay=0.9))
