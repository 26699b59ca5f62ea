"""The traced forms equal the packed encoder for every field of a config, and for layers of uneven width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, bert, modernbert, mosaicbert
from terrazzo.packed import Packed
from terrazzo.runtime.graph import GraphEncoder, graph_inputs, round_up, rounded
from terrazzo.runtime.padded import PaddedEncoder, padded_inputs

LENGTHS = (5, 21, 1, 13)
TINY = {"width": 24, "depth": 3, "num_heads": 3, "mlp_width": 40}
CONFIGS = {
    "mosaicbert": mosaicbert("tiny", 50, **TINY),
    "bert": bert("tiny", 50, **TINY),
    "modernbert": modernbert("tiny", 50, window=8, **TINY),
    "roberta": bert("tiny", 50, token_types=1, position_offset=2, **TINY),
    "causal": mosaicbert("tiny", 50, causal=True, **TINY),
    "causal window": modernbert("tiny", 50, causal=True, window=6, **TINY),
    "alibi window": mosaicbert("tiny", 50, window=4, global_every=2, **TINY),
    "every layer local": bert("tiny", 50, window=4, token_types=0, **TINY),
    "one rotation base": modernbert("tiny", 50, window=8, local_rope_theta=None, **TINY),
    "pre-norm rms": mosaicbert("tiny", 50, norm="rms", norm_placement="pre", final_norm=True, **TINY),
    "pre-norm, no norms outside": bert("tiny", 50, norm_placement="pre", embedding_norm=False, **TINY),
    "first norm skipped": bert("tiny", 50, norm_placement="pre", skip_first_norm=True, **TINY),
    "gated silu": mosaicbert("tiny", 50, activation="silu", mlp_in_bias=True, mlp_out_bias=False, **TINY),
    "clipped softmax": modernbert("tiny", 50, window=8, softmax_gamma=-0.1, softmax_zeta=1.05, **TINY),
    "clipped softmax, causal": mosaicbert("tiny", 50, causal=True, softmax_gamma=-0.1, **TINY),
    "gates": bert("tiny", 50, attention_gate="linear", **TINY),
    "gates of some heads": modernbert(
        "tiny", 50, attention_gate="mlp", gate_scaled=True, kept_heads=((0, 2), (), (1,)), **TINY
    ),
    "relu": bert("tiny", 50, activation="relu", attention_bias=False, norm_bias=False, **TINY),
    "gelu_tanh": bert("tiny", 50, activation="gelu_tanh", norm_eps=1e-3, **TINY),
}


def encoder_of(config: EncoderConfig) -> Encoder:
    """Weights large enough that every term of the config moves the output."""
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def batch_of(config: EncoderConfig, lengths: tuple[int, ...] = LENGTHS) -> Packed:
    types = torch.randint(0, config.token_types, (sum(lengths),)) if config.token_types > 1 else None
    return Packed(tokens_T=torch.randint(0, 50, (sum(lengths),)), lengths=lengths, token_types_T=types)


FORMS = {"graph": (GraphEncoder, graph_inputs), "padded": (PaddedEncoder, padded_inputs)}


def run(form: str, encoder: Encoder, batch: Packed, select_M: Tensor | None = None) -> Tensor:
    module, inputs_of = FORMS[form]
    inputs = inputs_of(batch, encoder.config, select_M)
    return module(encoder)(**{name: torch.from_numpy(values) for name, values in inputs.items()})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_every_config_equals_the_packed_encoder(name: str, form: str) -> None:
    encoder = encoder_of(CONFIGS[name])
    batch, select = batch_of(encoder.config), torch.tensor([3, 0, 26, 39])
    expected = encoder(batch)
    assert_close(run(form, encoder, batch), expected, rtol=1e-5, atol=1e-5)
    assert_close(run(form, encoder, batch, select), expected[select], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_rounded_up_the_states_of_the_tokens_are_the_same(name: str) -> None:
    encoder = encoder_of(CONFIGS[name])
    batch, select = batch_of(encoder.config), torch.tensor([3, 0, 26, 39])
    for chosen in (None, select):
        plain = graph_inputs(batch, encoder.config, chosen)
        inputs = rounded(plain)
        assert (len(inputs["ids"]), inputs["tokens"].shape, len(inputs["select"])) == (
            48,
            (4, 32),
            48 if chosen is None else 16,
        )
        hidden = GraphEncoder(encoder)(**{name: torch.from_numpy(values) for name, values in inputs.items()})
        expected = encoder(batch) if chosen is None else encoder(batch)[chosen]
        assert_close(hidden[: len(plain["select"])], expected, rtol=1e-5, atol=1e-5)


def test_few_sizes_occur_and_little_is_added() -> None:
    sizes = {number: round_up(number) for number in range(1, 5000)}
    assert all(number <= size < number + max(16, number / 15) for number, size in sizes.items())
    assert [len({size for number, size in sizes.items() if number <= top}) for top in (512, 4096)] == [32, 80]


@torch.inference_mode()
def test_the_padded_form_without_rows_keeps_its_shape() -> None:
    encoder = encoder_of(CONFIGS["bert"])
    batch = batch_of(encoder.config).replace(token_types_T=None)
    hidden = PaddedEncoder(encoder)(batch.to_padded(batch.tokens_T, fill=7), torch.tensor(LENGTHS))
    assert hidden.shape == (4, 21, 24)
    assert_close(hidden[batch.document_T, batch.positions_T], encoder(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["bert", "mosaicbert", "modernbert"])
@torch.inference_mode()
def test_layers_of_uneven_width(form: str, family: str) -> None:
    config = CONFIGS[family]
    layers = range(config.depth)
    kept = tuple(((), (2,), (0, 2), (0, 1, 2))[layer % 4] for layer in layers)
    encoder = encoder_of(config.replace(kept_heads=kept, mlp_widths=tuple((5, 0, 7)[layer % 3] for layer in layers)))
    batch = batch_of(encoder.config)
    assert_close(run(form, encoder, batch), encoder(batch), rtol=1e-5, atol=1e-5)


def test_parameters_are_shared() -> None:
    encoder = encoder_of(CONFIGS["bert"])
    own, theirs = GraphEncoder(encoder).parameters(), encoder.parameters()
    stored = {parameter.untyped_storage().data_ptr() for parameter in theirs}
    assert all(parameter.untyped_storage().data_ptr() in stored for parameter in own)


@pytest.mark.parametrize("form", FORMS)
def test_a_document_longer_than_the_positions_is_refused(form: str) -> None:
    config = bert("tiny", 50, max_len=8)
    with pytest.raises(InputError, match="9 tokens, the model has 8 learned positions"):
        FORMS[form][1](Packed.from_sequences([[1] * 9]), config, None)
