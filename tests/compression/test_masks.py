"""Weights that are pruned stay exactly zero, whatever trains them, and masks come back from disk."""

import copy

import pytest
import torch

from terrazzo.compression.masks import Masks, read_masks, single_matrices, sparsity, zeros_of
from terrazzo.compression.unstructured import magnitude
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, modernbert
from terrazzo.optim import OPTIMIZERS
from terrazzo.packed import Packed


@pytest.fixture
def encoder():
    return Encoder(modernbert("tiny", 50, width=16, depth=2, num_heads=2, mlp_width=24))


def batch():
    return Packed(tokens_T=torch.randint(50, (20,)), lengths=(7, 1, 12))


def zero_where_masked(encoder, keep):
    return all(not view[~keep[name]].any() for name, view in single_matrices(encoder).items())


def step(encoder, optimizer):
    encoder(batch()).sin().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masked_weights_are_zero_through_any_optimizer(encoder, kind):
    """From the middle of training on, with momentum that already points elsewhere, and decay."""
    optimizer = OPTIMIZERS[kind](lr=0.01, weight_decay=0.1, decouple_lr=False).build(encoder)
    for _ in range(3):
        step(encoder, optimizer)
    masks = Masks(encoder, magnitude(single_matrices(encoder), 0.5))
    for _ in range(3):
        step(encoder, optimizer)
        encoder.state_dict()
        assert zero_where_masked(encoder, masks.keep), "no checkpoint sees what the step moved"
    step(encoder, optimizer)
    seen = []
    encoder.blocks[1].mlp.down.register_forward_pre_hook(lambda *_: seen.append(zero_where_masked(encoder, masks.keep)))
    encoder(batch())
    assert seen == [True], "no forward pass sees what the step moved"
    masks.follow(optimizer)
    step(encoder, optimizer)
    assert zero_where_masked(encoder, masks.keep), "right after the step"
    kept = [view[masks.keep[name]] for name, view in single_matrices(encoder).items()]
    assert all(part.all() for part in kept) and masks.sparsity == pytest.approx(0.5, abs=1e-3)


def test_gradients_of_masked_weights_are_zero_and_the_others_as_ever(encoder):
    given, plain = batch(), copy.deepcopy(encoder)
    keep = magnitude(single_matrices(encoder), 0.4)
    with torch.no_grad():
        for name, view in single_matrices(plain).items():
            view.mul_(keep[name])
    Masks(encoder, keep)
    encoder(given).sin().sum().backward()
    plain(given).sin().sum().backward()
    masked, full = encoder.blocks[0].attention.qkv.weight.grad, plain.blocks[0].attention.qkv.weight.grad
    where = torch.cat([keep[f"blocks.0.attention.qkv.weight:{i}"] for i in range(3)])
    assert torch.equal(masked, full * where) and full[~where].any()


def test_two_forward_passes_may_share_a_backward_pass(encoder):
    Masks(encoder, magnitude(single_matrices(encoder), 0.5))
    (encoder(batch()).sum() + encoder(batch()).sin().sum()).backward()


def test_a_copy_has_masks_of_its_own(encoder):
    masks = Masks(encoder, magnitude(single_matrices(encoder), 0.5))
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        for one in (encoder, twin):
            one.blocks[0].mlp.up.weight.fill_(1.0)
    masks.remove()
    twin(batch()), encoder(batch())
    assert zero_where_masked(twin, masks.keep) and encoder.blocks[0].mlp.up.weight.all()


def test_masks_come_back_from_disk_and_from_zeros(encoder, tmp_path):
    masks = Masks(encoder, magnitude(single_matrices(encoder), 0.37))
    masks.save(tmp_path)
    stored = read_masks(tmp_path)
    assert (tmp_path / "masks.safetensors").stat().st_size < sum(m.numel() for m in masks.keep.values()) / 8 + 3000
    assert stored.keys() == masks.keep.keys()
    for found in (stored, zeros_of(encoder)):
        assert all(torch.equal(found[name], mask) for name, mask in masks.keep.items())
    assert sparsity(stored) == masks.sparsity
    with torch.no_grad():
        encoder.blocks[1].mlp.down.weight.zero_()
    assert zeros_of(encoder)["blocks.1.mlp.down.weight"].all(), "fresh zeros are no mask"


def test_masks_of_another_model_and_broken_files_are_refused(encoder, tmp_path):
    with pytest.raises(InputError, match=r"mask blocks.0.mlp.down.weight: \(3, 3\).*another model"):
        Masks(encoder, {"blocks.0.mlp.down.weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(InputError, match="missing"):
        read_masks(tmp_path)
    (tmp_path / "masks.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="masks.safetensors: damaged"):
        read_masks(tmp_path)
