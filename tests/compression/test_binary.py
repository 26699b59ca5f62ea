"""Packed signs: exact products, a small file that is read back, and the model that training had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from terrazzo.checkpoint import load_model, save_model
from terrazzo.compression.binary import (
    and_matmul,
    binarise,
    pack_binary,
    pack_bits,
    pack_signs,
    xnor_linear,
    xnor_matmul,
)
from terrazzo.compression.distill import DistillConfig, relations_loss
from terrazzo.compression.distill_workload import Distilled
from terrazzo.compression.quantise import save_packed
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, mosaicbert
from terrazzo.nn.binary import BinaryLinear, binary_weight, signs
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import load_task_model

TINY = {"width": 24, "num_heads": 3, "mlp_width": 40, "max_len": 32, "dropout": 0.0, "attention_dropout": 0.0}
BATCH = Packed(tokens_T=torch.arange(40) % 60, lengths=(5, 21, 1, 13))


def encoder_of(embeddings: bool = True, family=bert, **fields) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(family("tiny", 60, binary=True, binary_embeddings=embeddings, **(TINY | fields))).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.3)
    return encoder


@pytest.mark.parametrize("width", [1, 7, 64, 129])
def test_counting_bits_gives_the_float_product_exactly(width: int) -> None:
    left, right = (torch.randn(rows, width) for rows in (9, 11))
    left[0, 0] = 0.0
    bits = [pack_bits((signs(x) > 0).numpy()) for x in (left, right)]
    found = xnor_matmul(*bits, width)
    assert found.dtype == np.int32 and found.shape == (9, 11)
    assert torch.equal(torch.from_numpy(found).float(), signs(left) @ signs(right).T)
    seen = left > 0.3
    expected = seen.float() @ signs(right).T
    assert torch.equal(torch.from_numpy(and_matmul(pack_bits(seen.numpy()), bits[1])).float(), expected)
    assert xnor_matmul(bits[0][:0], bits[1], width).shape == (0, 11)


def test_many_rows_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrazzo.compression.binary._AT_ONCE", 40)
    left, right = (np.random.default_rng(0).random((rows, 20)) > 0.5 for rows in (13, 6))
    expected = np.where(left, 1, -1) @ np.where(right, 1, -1).T
    assert (xnor_matmul(pack_bits(left), pack_bits(right), 20) == expected).all()


def test_a_layer_of_bits_gives_what_the_layer_of_floats_gives() -> None:
    layer, x_TI = BinaryLinear(37, 10), torch.randn(6, 37)
    packed = pack_signs(layer.weight)
    assert torch.equal(binary_weight(packed.values()), packed.values()), "binary values are their own"
    assert torch.equal(packed.values().sign(), binary_weight(layer.weight).sign())
    with torch.no_grad():
        layer.weight.copy_(packed.values())
        assert_close(xnor_linear(x_TI, packed, layer.bias), layer(x_TI), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("family", [bert, mosaicbert])
@torch.no_grad()
def test_a_packed_folder_is_the_model_again(tmp_path: Path, corpus, embeddings: bool, family) -> None:
    size = corpus.vocab_size
    torch.manual_seed(0)
    encoder = Encoder(family("tiny", size, binary=True, binary_embeddings=embeddings, **TINY)).eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    packed = pack_binary(encoder)
    folder = save_packed(tmp_path / "packed", packed, corpus.path / "tokenizer.json")
    loaded = load_model(folder).eval()
    assert loaded.config == encoder.config and all(torch.equal(before[n], t) for n, t in encoder.state_dict().items())
    for name, tensor in packed.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(BATCH), packed.model.eval()(BATCH))
    named = {name for name in before if "blocks" in name and before[name].ndim == 2}
    assert set(packed.packed) == named | ({"embeddings.tokens.weight"} if embeddings else set())
    for name, values in packed.packed.items():
        assert torch.equal(values.values().sign(), binary_weight(before[name]).sign()), name
    assert (folder / "model.packed.safetensors").stat().st_size == packed.bytes
    again = pack_binary(loaded)
    assert all(torch.equal(again.packed[name].codes_OI, t.codes_OI) for name, t in packed.packed.items())


def test_a_task_folder_answers_as_before_it_was_written(tmp_path: Path, corpus) -> None:
    task = LabelTask.learn([Example(text="x", target=name) for name in "ab"])
    torch.manual_seed(0)
    model = TaskModel(binarise(Encoder(bert("tiny", corpus.vocab_size, **TINY)), embeddings=True), task).eval()
    packed = pack_binary(model)
    folder = save_packed(tmp_path / "task", packed, corpus.path / "tokenizer.json", max_len=32)
    loaded = load_task_model(folder).model.eval()
    assert loaded.encoder.config.binary and loaded.encoder.config.binary_embeddings
    assert torch.equal(loaded(BATCH), packed.model(BATCH))


def test_the_file_is_a_twenty_fifth_of_the_floats(tmp_path: Path, corpus) -> None:
    fields = {"width": 256, "num_heads": 4, "mlp_width": 1024, "depth": 2, "max_len": 32}
    encoder = Encoder(bert("tiny", corpus.vocab_size, binary=True, binary_embeddings=True, **fields))
    floats = save_model(tmp_path / "floats", encoder, corpus.path / "tokenizer.json") / "model.safetensors"
    packed = pack_binary(encoder)
    folder = save_packed(tmp_path / "packed", packed, corpus.path / "tokenizer.json")
    size = (folder / "model.packed.safetensors").stat().st_size
    assert size == packed.bytes <= floats.stat().st_size / 25, (size, floats.stat().st_size)


def test_a_student_begins_as_its_teacher() -> None:
    teacher = Encoder(bert("tiny", 60, **TINY))
    student = binarise(teacher)
    assert student.config == teacher.config.replace(binary=True)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
    with pytest.raises(InputError, match="binary: this model's weights are real"):
        pack_binary(teacher)
    with pytest.raises(InputError, match="binary_embeddings: the head reads the real table"):
        pack_binary(MaskedLM(teacher.config.replace(binary=True, binary_embeddings=True)))


@torch.no_grad()
def test_relations_of_every_block_add_up() -> None:
    task, options = (
        LabelTask.learn([Example(text="x", target=name) for name in "ab"]),
        {"outputs": 0.0, "relations": 1.0},
    )
    torch.manual_seed(0)
    teacher, student = (TaskModel(Encoder(bert("tiny", 60, **TINY)), task).eval() for _ in range(2))
    student.encoder = binarise(student.encoder)
    batch = BATCH.replace(labels_B=torch.tensor([0, 1, 1, 0]))

    def loss(**more) -> torch.Tensor:
        chosen = DistillConfig(**options, **more)
        return Distilled(SupervisedConfig(), teacher, chosen).loss(student, batch).sum

    apart = [loss(layers=(0, -1)), loss(layers=(-1, 1))]
    assert_close(loss(relation_blocks="every"), apart[0] + apart[1])
    assert_close(loss(), apart[1])
    assert min(part.item() for part in apart) > 0


def test_directions_match_whatever_their_length_and_only_then() -> None:
    teacher, other = torch.randn(2, 40, 3, 24)
    same = [relations_loss(scale * teacher, teacher, BATCH, 3, "direction") for scale in (1.0, 7.0)]
    assert_close(torch.stack(same), torch.zeros(2), rtol=0, atol=1e-5)
    far = [relations_loss(scale * other, teacher, BATCH, 3, "direction") for scale in (1.0, 7.0)]
    assert_close(far[1], far[0]) and far[0] > 0.1
