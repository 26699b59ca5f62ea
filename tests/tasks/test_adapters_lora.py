"""Adapters: nothing changes at first, they alone learn, merging changes nothing, names stay, roles are right."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, StackedLinear, bert, modernbert, mosaicbert
from terrazzo.optim import AdamWConfig, MuonConfig
from terrazzo.optim.roles import layers_above, roles, stacks
from terrazzo.packed import Packed
from terrazzo.tasks.adapters import LoraConfig, adapter_parameters, add_adapters, merge_adapters
from terrazzo.tasks.adapters.lora import LowRankLinear

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 48}
CONFIGS = [
    mosaicbert("tiny", 50, **SMALL, dropout=0.0),
    bert("tiny", 50, **SMALL, dropout=0.0, attention_dropout=0.0),
    modernbert("tiny", 50, **SMALL),
]
EVERYWHERE = LoraConfig(rank=3, alpha=6.0, targets=("qkv", "out", "mlp"))
every_family = pytest.mark.parametrize("config", CONFIGS, ids=["mosaicbert", "bert", "modernbert"])


def a_batch() -> Packed:
    generator = torch.Generator().manual_seed(3)
    return Packed(tokens_T=torch.randint(50, (20,), generator=generator), lengths=(7, 1, 12))


def perturb(encoder: Encoder) -> None:
    with torch.no_grad():
        for parameter in adapter_parameters(encoder).values():
            parameter.add_(torch.randn_like(parameter) * 0.3)


@every_family
def test_an_adapted_model_begins_as_the_plain_one_to_the_bit(config) -> None:
    encoder, batch = Encoder(config), a_batch()
    before = encoder(batch)
    add_adapters(encoder, EVERYWHERE)
    assert torch.equal(encoder(batch), before)


@every_family
def test_it_computes_the_sum_of_the_products(config) -> None:
    """Layer by layer against W + alpha / rank * B A, put together matrix by matrix."""
    encoder, x = Encoder(config), torch.randn(5, 32)
    add_adapters(encoder, EVERYWHERE)
    perturb(encoder)
    layer = encoder.blocks[0].attention.qkv
    rows = layer.weight.chunk(3)
    parts = [rows[k] + 6.0 / 3 * layer.lora_up[k] @ layer.lora_down[k] for k in range(3)]
    bias = 0 if layer.bias is None else layer.bias
    assert_close(layer(x), torch.cat([x @ part.T for part in parts], dim=1) + bias)


@every_family
def test_merged_equals_unmerged_and_is_plain_again(config) -> None:
    encoder, batch = Encoder(config), a_batch()
    names, types = list(encoder.state_dict()), [type(m) for m in encoder.modules()]
    add_adapters(encoder, EVERYWHERE)
    assert set(names) == set(encoder.state_dict()) - set(adapter_parameters(encoder)), "the base keeps its names"
    perturb(encoder)
    unmerged = encoder(batch)
    merge_adapters(encoder)
    assert_close(encoder(batch), unmerged, rtol=0, atol=1e-5)
    assert list(encoder.state_dict()) == names and [type(m) for m in encoder.modules()] == types
    assert all(p.requires_grad for p in encoder.parameters()) and not adapter_parameters(encoder)
    assert isinstance(encoder.blocks[0].attention.qkv, StackedLinear)


def test_only_adapters_learn() -> None:
    encoder, batch = Encoder(CONFIGS[0]), a_batch()
    add_adapters(encoder, LoraConfig(rank=2, targets=("qkv", "mlp")))
    before = copy.deepcopy(encoder.state_dict())
    optimizer = AdamWConfig(lr=0.1).build(encoder)
    for _ in range(2):
        encoder(batch).square().sum().backward()
        assert {n for n, p in encoder.named_parameters() if p.grad is not None} == set(adapter_parameters(encoder))
        optimizer.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapter_parameters(encoder)) and len(changed) == 2 * 2 * 3
    assert {name.split(".")[-2] for name in changed} == {"qkv", "up", "down"}


def test_a_checkpoint_of_adapters_restores_the_model() -> None:
    encoder, twin, batch = Encoder(CONFIGS[0]), Encoder(CONFIGS[0]), a_batch()
    for model in (encoder, twin):
        add_adapters(model, EVERYWHERE)
    perturb(encoder)
    twin.load_state_dict({name: tensor.clone() for name, tensor in encoder.state_dict().items()}, assign=True)
    for model in (twin, copy.deepcopy(encoder)):
        assert torch.equal(model(batch), encoder(batch))
        merge_adapters(model)
        assert_close(model(batch), encoder(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=0.01, layer_decay=0.5), MuonConfig(lr=0.01)])
def test_optimizers_see_matrices(optimizer) -> None:
    model = nn.ModuleDict({"encoder": Encoder(CONFIGS[0]), "head": nn.Linear(32, 2)})
    add_adapters(model["encoder"], EVERYWHERE)
    names = set(adapter_parameters(model))
    assert {roles(model)[name] for name in names} == {"matrix"} and {stacks(model)[name] for name in names} == {1}
    assert {layers_above(model)[name] for name in names} == {0, 1}
    built = optimizer.build(model)
    assert {n for g in built.param_groups for n in g["param_names"]} == names | {"head.weight", "head.bias"}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    built.step()


def test_dropout_is_of_the_adapters_alone() -> None:
    layer = LowRankLinear(nn.Linear(32, 8), LoraConfig(dropout=0.5))
    x = torch.randn(4, 32)
    assert torch.equal(layer(x), layer(x))
    nn.init.normal_(layer.lora_up)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_bad_options_are_named() -> None:
    for fields, message in (
        ({"rank": 0}, "lora.rank must be at least 1, got 0"),
        ({"targets": ("qk",)}, "lora.targets: 'qk': did you mean 'qkv'"),
        ({"targets": ()}, "lora.targets: name at least one"),
        ({"dropout": 1.0}, "lora.dropout must be in"),
        ({"alpha": 0.0}, "lora.alpha must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            LoraConfig(**fields)
    encoder = Encoder(CONFIGS[0])
    with pytest.raises(InputError, match="lora.rank 32: the model's matrices have rank 32"):
        add_adapters(encoder, LoraConfig(rank=32))
    add_adapters(encoder, LoraConfig())
    with pytest.raises(ValueError, match="adapters already"):
        add_adapters(encoder, LoraConfig())
