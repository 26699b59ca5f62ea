"""Task folders: an encoder with a head, whole or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from terrazzo.checkpoint import load_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.packed import Packed
from terrazzo.tasks.adapters import LoraConfig, adapter_parameters, add_adapters
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import (
    TaskModel,
    is_task_folder,
    load_task_model,
    model_fingerprint,
    model_folder,
    save_task_model,
)

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 48}
BATCH = Packed.from_sequences([[2, 6, 7, 3], [2, 9, 3]])


@pytest.fixture
def tokenizer_file(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefg"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def model():
    return TaskModel(Encoder(mosaicbert("tiny", 12, **SMALL)), LabelTask(classes=("no", "yes", "perhaps"))).eval()


@pytest.fixture
def folder(tmp_path, model, tokenizer_file):
    return save_task_model(tmp_path / "out" / "model", model, tokenizer_file, {"run": "here"}, max_len=64)


def test_round_trip_gives_the_same_model_and_draws_nothing(folder, model):
    state = torch.get_rng_state()
    loaded = load_task_model(folder.parent)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.model.task, loaded.max_len, loaded.adapter) == (model.task, 64, None)
    assert loaded.tokenizer.encode("a b").ids == [2, 5, 6, 3]
    torch.testing.assert_close(loaded.model.eval()(BATCH), model(BATCH), rtol=0, atol=0)
    assert json.loads((folder / "terrazzo.json").read_text())["run"] == "here"


def test_another_length_is_another_model(folder):
    first = model_fingerprint(folder)
    task = folder / "task.json"
    task.write_text(task.read_text().replace("64", "32"))
    assert load_task_model(folder).max_len == 32 and model_fingerprint(folder) != first


def test_the_encoder_is_a_model_folder_of_its_own(folder, model):
    encoder = load_model(folder).eval()
    torch.testing.assert_close(encoder(BATCH), model.encoder(BATCH), rtol=0, atol=0)


def test_a_checkpoint_keeps_adapters_apart(tmp_path, model, tokenizer_file):
    options = LoraConfig(rank=2)
    add_adapters(model.encoder, options)
    for parameter in adapter_parameters(model.encoder).values():
        torch.nn.init.normal_(parameter)
    expected = model.eval()(BATCH)
    path = save_task_model(tmp_path / "c", model, tokenizer_file, max_len=8, adapter=options)
    apart, merged = load_task_model(path, merge=False), load_task_model(path)
    assert apart.adapter == options
    assert apart.model.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(apart.model.eval()(BATCH), expected, rtol=0, atol=0)
    assert not adapter_parameters(merged.model)
    torch.testing.assert_close(merged.model.eval()(BATCH), expected, rtol=0, atol=1e-5)


def test_a_folder_stands_for_the_model_inside(folder, tmp_path):
    out = folder.parent
    assert model_folder(out) == model_folder(folder) == folder
    assert is_task_folder(out) and is_task_folder(folder)
    (folder / "task.json").unlink()
    assert not is_task_folder(out)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "finetune.json").write_text("{}")
    with pytest.raises(InputError, match="half: not finished, it has no model yet"):
        model_folder(tmp_path / "half")
    for nonsense in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"no such folder|has no config\.json"):
            load_task_model(nonsense)


def test_a_model_without_a_head_says_how_to_get_one(folder):
    (folder / "task.json").unlink()
    with pytest.raises(InputError, match="without the head of a task: fine-tune it first: terrazzo finetune"):
        load_task_model(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "task.json").write_text("{"), r"task\.json: does not parse"),
        (lambda f: (f / "task.json").write_text("[]"), r"task\.json: format is 'list'"),
        (lambda f: edit(f, format="terrazzo-task-9"), "another version of terrazzo"),
        (lambda f: edit(f, max_len="long"), r"task\.json: max_len: .*\(got 'long'\)"),
        (
            lambda f: edit(f, task={"kind": "label", "clases": []}),
            "unknown key 'task.label.clases': did you mean 'classes'",
        ),
        (lambda f: (f / "head.safetensors").unlink(), r"head\.safetensors: missing"),
        (lambda f: (f / "head.safetensors").write_bytes(b"12345678xx"), r"head\.safetensors: truncated or damaged"),
        (
            lambda f: head(f, {"head.out.0.weight": torch.ones(2, 32)}),
            r"lacks head\.out\.0\.bias, head\.out\.0\.weight is",
        ),
        (lambda f: head(f, {"head.more": torch.ones(1)}), r"has unknown head\.more"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_task_model(folder)


def edit(folder, **fields):
    values = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(values | fields))


def head(folder, tensors):
    kept = load_file(folder / "head.safetensors")
    kept = kept if "head.more" in tensors else {}
    save_file(kept | tensors, folder / "head.safetensors")
