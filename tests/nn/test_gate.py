"""Gates: each head's own slice and number, no change at first where that is asked for, off without a trace."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM, bert, mosaicbert
from terrazzo.nn.attention import Attention, AttentionContext
from terrazzo.nn.gate import AttentionGate, add_gates
from terrazzo.packed import Packed
from terrazzo.train.sources import transformed

TINY = {"width": 24, "num_heads": 3, "mlp_width": 24, "dropout": 0.0, "attention_dropout": 0.0}
BATCH = Packed(tokens_T=torch.arange(30) % 19, lengths=(11, 1, 18))


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("heads", [(0, 1, 2), (0, 2)])
def test_every_head_is_gated_by_its_own_slice(kind: str, heads: tuple[int, ...]) -> None:
    config = bert("tiny", 20, depth=1, attention_gate=kind, kept_heads=(heads,), **TINY)
    gate, x_TD, mixed_TD = drawn(AttentionGate(config, 0)), torch.randn(7, 24), torch.randn(7, 8 * len(heads))
    out = gate(x_TD, mixed_TD)
    for place, head in enumerate(heads):
        inner = x_TD[:, head * 8 : head * 8 + 8]
        if gate.hidden is not None:
            inner = torch.relu(inner @ gate.hidden.weight[place].T + gate.hidden.bias[place * 2 : place * 2 + 2])
        opened = torch.sigmoid(inner @ gate.out.weight[place, 0] + gate.out.bias[place])
        part = slice(place * 8, place * 8 + 8)
        assert_close(out[:, part], mixed_TD[:, part] * opened[:, None])


def test_the_selection_is_gated_by_the_selected_tokens() -> None:
    config = bert("tiny", 20, attention_gate="linear", **TINY)
    layer, x_TD, select = drawn(Attention(config, 0)).eval(), torch.randn(30, 24), torch.tensor([3, 0, 29])
    context = AttentionContext.of(BATCH, config, None)
    assert_close(layer(x_TD, context, select), layer(x_TD, context)[select])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("init", [0.25, 0.5, 0.9])
def test_scaled_gates_change_nothing_at_first_and_plain_ones_are_open_by_init(kind: str, init: float) -> None:
    fields = {"attention_gate": kind, "gate_init": init, "init_std": 1e-3}
    scaled, plain = (bert("tiny", 20, gate_scaled=flag, **fields, **TINY) for flag in (True, False))
    x_TD = torch.randn(5, 24)
    for config, opened in ((scaled, 1.0), (plain, init)):
        gate = AttentionGate(config, 0)
        gate.reset(config)
        assert_close(gate.gates(x_TD), torch.full((5, 3), opened), rtol=0, atol=1e-6 if opened == 1 else 5e-3)
    gate = AttentionGate(scaled, 0)
    gate.reset(scaled)
    gate(x_TD, torch.randn(5, 24)).square().sum().backward()
    assert gate.out.weight.grad.abs().min() > 0, "weights of zero still learn"


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_trained_model_with_new_gates_computes_what_it_did(kind: str) -> None:
    model = drawn(MaskedLM(mosaicbert("tiny", 20, kept_heads=((0, 2), ()), **TINY))).eval()
    state, config = add_gates(model.state_dict(), model.config, kind, 0.25)
    gated = MaskedLM(config).eval()
    gated.load_state_dict(state)
    assert_close(gated(BATCH), model(BATCH), rtol=1e-4, atol=1e-4)
    encoder = Encoder(config)
    encoder.load_state_dict(add_gates(model.encoder.state_dict(), model.config, kind, 0.25)[0])
    stage = transformed(model, "terrazzo.nn.gate:add_gates").eval()
    assert stage.config.attention_gate == "linear" and torch.equal(stage(BATCH), model(BATCH))
    with pytest.raises(InputError, match="gate_init must be between 0 and 1, got 1.0"):
        add_gates(model.state_dict(), model.config, "linear", 1.0)


def weights_of(config: EncoderConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MaskedLM(config).state_dict()


def test_without_gates_nothing_is_drawn_or_stored() -> None:
    config = bert("tiny", 20, **TINY)
    before, after = weights_of(config), weights_of(config.replace(gate_init=0.9, gate_scaled=True))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and before.keys() == after.keys()
    assert not any("gate" in name for name in before)
    assert any("gate" in name for name in weights_of(config.replace(attention_gate="mlp")))
