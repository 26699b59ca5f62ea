"""Packed matrices: bits that come back as they were, files of the size that was said, damage that is told."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from terrazzo.checkpoint import atomic_folder, has_masked_lm_head, load_model, write_model
from terrazzo.checkpoint.packing import (
    PACKED_WEIGHTS,
    PackedTensor,
    file_bytes,
    from_stored,
    pack_codes,
    shape_of,
    unpack_codes,
)
from terrazzo.checkpoint.tensors import read_safetensors, write_tensors
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert


def drawn(rows, columns, bits, group):
    codes = torch.randint(1 << bits, (rows, columns), dtype=torch.uint8)
    grid = torch.rand(rows, -(-columns // group), 2).half()
    return PackedTensor(codes, grid, bits, group)


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back_and_lie_bit_by_bit(bits):
    codes = torch.randint(1 << bits, (37, 5), dtype=torch.uint8)
    stream = pack_codes(codes, bits)
    spelled = "".join(f"{code:0{bits}b}"[::-1] for code in codes.flatten().tolist())
    spelled += "0" * (-len(spelled) % 8)
    assert stream.tolist() == [int(spelled[i : i + 8][::-1], 2) for i in range(0, len(spelled), 8)]
    assert torch.equal(unpack_codes(stream, bits, codes.numel()), codes.flatten())
    assert unpack_codes(pack_codes(codes[:0], bits), bits, 0).shape == (0,)


def test_values_are_lowest_and_steps_of_their_group():
    tensor = drawn(3, 10, 3, 4)
    for row in range(3):
        for column in range(10):
            step, lowest = tensor.grid_OG2[row, column // 4].tolist()
            exact = torch.tensor(lowest + step * int(tensor.codes_OI[row, column]), dtype=torch.float64)
            assert tensor.values()[row, column] == exact.float()


def test_a_file_has_the_size_that_was_said_and_gives_the_values(tmp_path):
    packed = {"ä.weight": drawn(7, 33, 3, 16), "b": drawn(130, 9, 2, 9), "c": drawn(5, 5, 8, 2)}
    plain = {"norm": torch.randn(9).half(), "wide": torch.randn(3, 3), "count": torch.zeros(3, dtype=torch.uint8)}
    write_tensors(plain, tmp_path / "file", packed)
    shapes = {name: shape_of(tensor) for name, tensor in packed.items()}
    said = file_bytes(shapes, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in plain.items()})
    assert (tmp_path / "file").stat().st_size == said
    header = 8 + int.from_bytes((tmp_path / "file").read_bytes()[:8], "little")
    payload = sum(-(-t.codes_OI.numel() * t.bits // 8) + 2 * t.grid_OG2.numel() for t in packed.values())
    assert said == header + payload + sum(tensor.nbytes for tensor in plain.values())
    read = read_safetensors(tmp_path / "file")
    expected = {name: tensor.values() for name, tensor in packed.items()}
    expected |= {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    assert equal(read, expected)


@pytest.mark.parametrize("shape", [bert, modernbert])
@pytest.mark.parametrize("kind", [Encoder, MaskedLM])
def test_a_folder_opens_as_floats(shape, kind, tmp_path):
    config = shape("base", vocab_size=50, width=16, depth=1, num_heads=2, mlp_width=24, max_len=16, pad_vocab_to=8)
    model = kind(config)
    prefix = "" if kind is Encoder else "encoder."
    names = [f"{prefix}{name}.weight" for name in ("embeddings.tokens", "blocks.0.attention.qkv", "blocks.0.mlp.down")]
    state = model.state_dict()
    packed = {name: drawn(*state[name].shape, bits, 8) for name, bits in zip(names, (2, 3, 4), strict=True)}
    with atomic_folder(tmp_path / "m") as folder:
        write_model(folder, model, packed=packed)
    assert not (tmp_path / "m" / "model.safetensors").exists(), "other libraries would take its names for missing ones"
    loaded = load_model(tmp_path / "m")
    assert type(loaded) is kind and has_masked_lm_head(tmp_path / "m") == (kind is MaskedLM)
    expected = {name: packed[name].values() if name in packed else tensor for name, tensor in state.items()}
    expected[names[0]][50:] = 0  # the published formats have no padding of the vocabulary
    assert equal({n: t for n, t in loaded.state_dict().items() if n in packed}, {n: expected[n] for n in packed})
    if shape is bert:
        with safe_open(tmp_path / "m" / PACKED_WEIGHTS, "pt") as stored:
            assert sum(name.endswith("self.query.weight.codes") for name in stored.keys()) == 1  # noqa: SIM118


def damaged_metadata(change):
    def damage(tensors, metadata):
        values = json.loads(metadata["terrazzo"])
        change(values)
        metadata["terrazzo"] = json.dumps(values)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, _: tensors.pop("a.codes"), r"a\.codes is missing"),
        (lambda tensors, _: tensors.update({"a.codes": tensors["a.codes"][:-1]}), r"a\.codes is .*\(11,\), not .*12"),
        (lambda tensors, _: tensors.update({"a.grid": tensors["a.grid"].float()}), r"a\.grid is torch\.float32"),
        (lambda tensors, _: tensors["a.grid"].fill_(torch.nan), r"a\.grid holds numbers that are not finite"),
        (damaged_metadata(lambda values: values.update(format="terrazzo-packed-9")), "'terrazzo-packed-9'"),
        (damaged_metadata(lambda values: values["packed"].update(a=[4, 8, 9, 4])), "bits=9"),
        (damaged_metadata(lambda values: values["packed"].update(a=[4, 8])), "does not parse"),
        (damaged_metadata(lambda values: values.update(packed=None)), "does not parse"),
        (lambda _, metadata: metadata.update(terrazzo="{"), "does not parse"),
    ],
)
def test_damage_is_told(damage, message, tmp_path):
    file = tmp_path / "file"
    write_tensors({}, file, {"a": drawn(4, 8, 3, 4)})
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    damage(tensors, metadata)
    save_file(tensors, file, metadata)
    with pytest.raises(InputError, match=message):
        read_safetensors(file)


def test_a_cut_file_is_told_and_other_files_are_left_alone(tmp_path):
    file = tmp_path / "file"
    write_tensors({}, file, {"a": drawn(40, 8, 3, 4)})
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_safetensors(file)
    tensors = {"a": torch.randn(3).half()}
    assert from_stored(tensors, {"format": "pt"}, file) is tensors and from_stored(tensors, None, file) is tensors
