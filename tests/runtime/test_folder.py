"""Exported folders: opened as they were written, refused when they are not."""

from __future__ import annotations

import json
import shutil

import pytest

import terrazzo
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.runtime import OpenVinoRuntime, TorchRuntime, save_openvino, to_openvino
from terrazzo.runtime import folder as folder_module
from terrazzo.runtime.folder import RECORD, model_files, open_runtime, read_record, write_record
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder

OLD = Machine(cpu="old", instructions=("avx2", "avx512f"), cores=2)
NEW = Machine(cpu="new", instructions=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), cores=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_task_folder(tmp_path_factory.mktemp("folder") / "model", LabelTask(classes=("calm", "wild")))


@pytest.fixture
def exported(source, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(source, folder)
    save_openvino(to_openvino(terrazzo.load(source).encoder), folder / "encoder.xml")
    write_record(folder, runtime="openvino", precision="fp32", max_len=32, batch_tokens=512, streams=2)
    return folder


def swap(file, place) -> None:
    """Change one byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def rewrite(folder, **fields) -> None:
    values = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(values | fields))


def test_the_runtime_is_the_one_recorded(exported) -> None:
    runtime = open_runtime(exported)
    assert isinstance(runtime, OpenVinoRuntime)
    assert (runtime.precision, runtime.batch_tokens, runtime.streams) == ("fp32", 512, min(2, this_machine().cores))
    assert open_runtime(exported, streams=1, threads=1).streams == 1


def test_a_model_that_was_not_exported_runs_on_pytorch(source) -> None:
    assert isinstance(open_runtime(source), TorchRuntime)
    assert isinstance(terrazzo.load(source).runtime, TorchRuntime)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("encoder.bin", lambda file: file.unlink(), "encoder.bin: missing, so the exported folder is not whole"),
        ("encoder.bin", lambda file: file.write_bytes(file.read_bytes()[:-9]), "encoder.bin: has .* bytes"),
        ("encoder.bin", lambda file: file.write_bytes(file.read_bytes()[::-1]), "encoder.bin: is not the file that"),
        ("model.safetensors", lambda file: file.write_bytes(b"short"), "model.safetensors: has 5 bytes"),
        ("head.safetensors", lambda file: file.unlink(), "head.safetensors: missing"),
        ("head.safetensors", lambda file: swap(file, -1), "head.safetensors: is not the file that"),
        ("tokenizer.json", lambda file: swap(file, 40), "tokenizer.json: is not the file that"),
        ("config.json", lambda file: swap(file, 40), "config.json: is not the file that"),
        ("task.json", lambda file: swap(file, 40), "task.json: is not the file that"),
        (RECORD, lambda file: file.unlink(), "runtime.json: missing beside encoder.xml"),
        (RECORD, lambda file: file.write_text('{"format": '), "runtime.json: does not parse"),
        (RECORD, lambda file: file.write_text('{"format": "terrazzo-runtime-9"}'), "another version of terrazzo"),
        (RECORD, lambda file: file.write_text('{"format": "terrazzo-runtime-1"}'), "runtime.json: .*files"),
    ],
)
def test_damage_is_named_with_its_mend(exported, name, damage, message) -> None:
    damage(exported / name)
    with pytest.raises(InputError, match=message):
        terrazzo.load(exported)


def test_a_record_without_its_graph_is_refused(exported) -> None:
    rewrite(exported, runtime="onnx")
    with pytest.raises(InputError, match="lists no encoder.onnx, the graph of onnx; copy the folder again"):
        open_runtime(exported)


def test_weights_of_the_same_size_are_compared_when_asked(exported) -> None:
    swap(exported / "model.safetensors", -1)
    message = "model.safetensors: is not the file that was written"
    opened = terrazzo.load(exported)
    for read in (
        lambda: read_record(exported, verify=True),
        lambda: opened.network,
        lambda: terrazzo.load(exported, device="cpu"),
    ):
        with pytest.raises(InputError, match=message):
            read()


def test_weights_that_run_are_compared_unless_they_are_large(source, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(source, tmp_path / "torch")
    write_record(folder, runtime="torch", precision="fp32", max_len=32)
    swap(folder / "model.safetensors", -1)
    with pytest.raises(InputError, match="model.safetensors: is not the file that was written"):
        terrazzo.load(folder)
    monkeypatch.setattr(folder_module, "_CHEAP", 100)
    assert terrazzo.load(folder).runtime.name == "torch"


@pytest.mark.parametrize(("half_range", "refused"), [(False, True), (True, False)])
def test_int8_that_would_saturate_is_refused(exported, monkeypatch, half_range, refused) -> None:
    rewrite(exported, precision="int8", half_range=half_range, machine=to_dict(NEW))
    monkeypatch.setattr(folder_module, "this_machine", lambda: OLD)
    if refused:
        with pytest.raises(InputError, match=r"need a CPU with VNNI, this one \(old\)"):
            open_runtime(exported)
    else:
        with pytest.warns(UserWarning, match="this CPU has no VNNI: int8 runs without its speed"):
            open_runtime(exported)


def test_bf16_without_its_instructions_says_so(exported, monkeypatch) -> None:
    rewrite(exported, precision="bf16", machine=to_dict(NEW))
    monkeypatch.setattr(folder_module, "this_machine", lambda: OLD)
    with pytest.warns(UserWarning, match="no bf16 products"):
        assert open_runtime(exported).streams == 2, "what another machine measured is not used"


def test_only_what_the_model_is_belongs_to_it(source, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    for name in ("optimizer.pt", "counters.json", "pytorch_model.bin", "model.onnx", "README.md"):
        (folder / name).write_text("")
    assert {file.name for file in model_files(folder)} == {file.name for file in source.iterdir()}
