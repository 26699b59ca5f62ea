"""Physically smaller encoders equal those with zeros, whatever the architecture and however often they are cut."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from terrazzo.checkpoint import load_model, save_model
from terrazzo.compression import shrink
from terrazzo.compression.shrink import masked, planned_config, stitch
from terrazzo.compression.sites import matrices, sites
from terrazzo.compression.statistics import Moments, collect, output_projections
from terrazzo.compression.ziplm import database
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, bert, modernbert, mosaicbert, parameter_count
from terrazzo.packed import Packed

SHAPE = {"width": 32, "num_heads": 4, "mlp_width": 40, "depth": 3}
FAMILIES = {
    "bert": bert("tiny", 100, **SHAPE),
    "mosaicbert": mosaicbert("tiny", 100, **SHAPE),
    "modernbert": modernbert("tiny", 100, window=8, **SHAPE),
    "pre-norm": mosaicbert("tiny", 100, norm="rms", norm_placement="pre", mlp_in_bias=True, final_norm=True, **SHAPE),
    "gates": bert("tiny", 100, attention_gate="linear", softmax_gamma=-0.05, **SHAPE),
    "mlp gates": mosaicbert("tiny", 100, attention_gate="mlp", gate_scaled=True, **SHAPE),
}
PLAN = {"heads.0": 2, "units.0": 0, "heads.1": 0, "units.1": 17, "units.2": 40, "heads.2": 3}
LENGTHS = (20, 31, 9, 1)


def encoder_of(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def batch(seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    return Packed(tokens_T=torch.randint(0, 100, (sum(LENGTHS),), generator=draw), lengths=LENGTHS)


def grams_of(encoder: Encoder) -> dict[str, Moments]:
    return collect(encoder, [batch(1), batch(2)], output_projections(encoder.config)).grams


@pytest.mark.parametrize("config", FAMILIES.values(), ids=list(FAMILIES))
def test_the_smaller_encoder_equals_the_masked_one_and_is_cut_again(config: EncoderConfig) -> None:
    encoder = encoder_of(config)
    levels = database(encoder, grams_of(encoder))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    small = stitch(encoder, levels, PLAN)
    assert_close(small(batch()), masked(encoder, levels, PLAN)(batch()), rtol=0, atol=1e-5)
    assert (small(batch()) - encoder(batch())).abs().max() > 0.01
    assert small.config == planned_config(levels, PLAN) and not small.training
    assert [site.size(small.config) for site in sites(config)] == [2, 0, 0, 17, 3, 40]
    owned = {tensor.data_ptr() for tensor in encoder.state_dict().values()}
    assert not owned & {tensor.data_ptr() for tensor in small.state_dict().values() if tensor.numel()}

    again = database(small, grams_of(small))
    plan = {"heads.0": 1, "units.1": 3, "heads.2": 2, "heads.1": 0}
    smallest = stitch(small, again, plan)
    assert_close(smallest(batch()), masked(small, again, plan)(batch()), rtol=0, atol=1e-5)
    for first, second in zip(small.config.kept_heads or (), smallest.config.kept_heads or (), strict=True):
        assert set(second) <= set(first)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_heads_keep_their_numbers() -> None:
    encoder = encoder_of(FAMILIES["mosaicbert"])
    levels = database(encoder, grams_of(encoder))
    small = stitch(encoder, levels, {"heads.0": 2})
    kept = levels.level("heads.0", 2).kept
    assert small.config.kept_heads == (kept, (0, 1, 2, 3), (0, 1, 2, 3)) and small.config.mlp_widths is None
    again = database(small, grams_of(small))
    one = stitch(small, again, {"heads.0": 1}).config.kept_heads
    assert one is not None and one[0] == (kept[again.level("heads.0", 1).kept[0]],)


def test_the_rows_of_other_heads_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(FAMILIES["mosaicbert"])
    levels = database(encoder, grams_of(encoder))
    right = shrink.columns_of
    monkeypatch.setattr(shrink, "columns_of", lambda groups, group: right(range(len(groups)), group))
    small = stitch(encoder, levels, PLAN)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        assert_close(small(batch()), masked(encoder, levels, PLAN)(batch()), rtol=0, atol=1e-5)


def test_a_full_plan_changes_nothing() -> None:
    encoder = encoder_of(FAMILIES["bert"]).train()
    levels = database(encoder, grams_of(encoder))
    same = stitch(encoder, levels, {site.name: site.size(encoder.config) for site in sites(encoder.config)})
    assert same.config == encoder.config and same.training
    for (name, tensor), other in zip(encoder.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_the_mean_that_the_bias_takes_over_is_stitched_too() -> None:
    encoder = encoder_of(FAMILIES["bert"])
    levels = database(encoder, grams_of(encoder), centre=True)
    small = stitch(encoder, levels, PLAN)
    assert_close(small(batch()), masked(encoder, levels, PLAN)(batch()), rtol=0, atol=1e-5)
    assert (small(batch()) - stitch(encoder, database(encoder, grams_of(encoder)), PLAN)(batch())).abs().max() > 0.01
    bare = encoder_of(FAMILIES["modernbert"])
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.out has no bias"):
        database(bare, grams_of(bare), centre=True)


def test_parameters_and_files_shrink_by_the_formula(tmp_path: Path) -> None:
    encoder = encoder_of(FAMILIES["mosaicbert"])
    small = stitch(encoder, database(encoder, grams_of(encoder)), PLAN)
    fewer = sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in small.parameters())
    assert fewer == parameter_count(encoder.config) - parameter_count(small.config)
    sizes = [(save_model(tmp_path / name, model) / "model.safetensors").stat().st_size
             for name, model in (("whole", encoder), ("small", small))]  # fmt: skip
    assert abs(sizes[0] - sizes[1] - 4 * fewer) < 1024
    opened = load_model(tmp_path / "small").eval()
    assert isinstance(opened, Encoder) and opened.config == small.config
    assert_close(opened(batch()), small(batch()), rtol=0, atol=0)


def test_plans_that_cannot_be_met_are_refused() -> None:
    encoder = encoder_of(FAMILIES["bert"])
    levels = database(encoder, grams_of(encoder), {"units.0": [20, 10], "heads.1": [2]})
    with pytest.raises(InputError, match="units.0 of size 11: no such level; the nearest are 10 and 20"):
        stitch(encoder, levels, {"units.0": 11})
    with pytest.raises(InputError, match="site 'heads.0' has no levels here"):
        stitch(encoder, levels, {"heads.0": 2})
    with pytest.raises(InputError, match="did you mean 'heads.2'"):
        stitch(encoder, levels, {"heads.3": 2})
    moved = copy.deepcopy(encoder)
    moved.blocks[1].mlp.up.weight.data[0, 0] += 1
    for other in (stitch(encoder, levels, {"units.0": 10}), moved):
        for cut in (stitch, masked):
            with pytest.raises(InputError, match="of another encoder"):
                cut(other, levels, {"heads.1": 2})


def test_matrices_are_the_weights_of_the_blocks() -> None:
    encoder = encoder_of(FAMILIES["bert"])
    found = matrices(encoder)
    assert list(found)[:4] == [f"blocks.0.{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.up",
                                                                      "mlp.down")]  # fmt: skip
    assert len(found) == 12 and found["blocks.2.mlp.down.weight"] is encoder.get_parameter("blocks.2.mlp.down.weight")
