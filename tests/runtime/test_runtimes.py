"""OpenVINO and ONNX Runtime against the encoder: values, batch invariance, selections, threads, files, refusals."""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.testing import assert_close

from terrazzo.errors import InputError, RunError
from terrazzo.nn import Encoder, bert, modernbert, mosaicbert
from terrazzo.packed import Packed
from terrazzo.runtime import OnnxRuntime, OpenVinoRuntime, quantise_onnx, save_openvino, to_onnx, to_openvino
from terrazzo.runtime.contract import Precision, Runtime
from terrazzo.runtime.openvino import import_openvino

LENGTHS = (5, 40, 17, 1, 9)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TINY = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64}
CONFIGS = {
    "mosaicbert": mosaicbert("tiny", 100, window=8, **TINY),
    "bert": bert("tiny", 100, **TINY),
    "modernbert": modernbert("tiny", 100, **TINY | {"depth": 4}, window=8, causal=True, norm="rms"),
    "uneven": mosaicbert("tiny", 100, **TINY | {"depth": 3}, kept_heads=((1,), (), (0, 1)), mlp_widths=(7, 16, 0)),
}


@pytest.fixture(
    scope="module", params=[(kind, name) for kind in ("openvino", "onnx") for name in CONFIGS], ids="-".join
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Runtime]:
    """An encoder and its runtime, read from its files."""
    kind, name = request.param
    encoder, folder = Encoder(CONFIGS[name]).eval(), tmp_path_factory.mktemp(kind)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if kind == "openvino":
        save_openvino(to_openvino(encoder), folder / "encoder.xml")
        return encoder, OpenVinoRuntime.open(folder / "encoder.xml", encoder.config, streams=2, threads=2)
    to_onnx(encoder, folder / "encoder.onnx")
    return encoder, OnnxRuntime.open(folder / "encoder.onnx", encoder.config, streams=2, threads=2)


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    return Packed(tokens_T=torch.randint(0, 100, (sum(lengths),), generator=generator), lengths=lengths)


@torch.inference_mode()
def test_equals_the_encoder(pair: tuple[Encoder, Runtime]) -> None:
    encoder, runtime = pair
    assert isinstance(runtime, Runtime)
    batch, select = batch_of(LENGTHS), torch.tensor([71, 0, 30])
    if encoder.config.token_types > 1:
        batch = batch.replace(token_types_T=(torch.arange(72) % 3 == 0).long())
    expected = encoder(batch)
    assert_close(runtime(batch), expected, **CLOSE)
    assert_close(runtime(batch, select), expected[select], **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [(1,), (512,), (1, 1, 1), (2, 512, 1)])
def test_any_length_and_number_of_documents(pair: tuple[Encoder, Runtime], lengths: tuple[int, ...]) -> None:
    encoder, runtime = pair
    batch = batch_of(lengths)
    assert_close(runtime(batch), encoder(batch), **CLOSE)


def test_a_document_gives_the_same_in_any_batch(pair: tuple[Encoder, Runtime]) -> None:
    _, runtime = pair
    batch = batch_of(LENGTHS)
    together = runtime(batch).split(LENGTHS)
    for tokens, hidden in zip(batch.tokens_T.split(LENGTHS), together, strict=True):
        assert_close(runtime(Packed.from_sequences([tokens.numpy()])), hidden, **CLOSE)


def test_threads_get_their_own_results_and_keep_them(pair: tuple[Encoder, Runtime]) -> None:
    _, runtime = pair
    batches = [batch_of((3 + i, 12, 5), seed=i) for i in range(8)]
    expected = [runtime(batch).clone() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(runtime, batches * 4))
    for result, wanted in zip(results, expected * 4, strict=True):
        assert_close(result, wanted, rtol=0, atol=1e-6)


def test_int8_onnx_stays_near_where_one_channel_is_large(tmp_path: Path) -> None:
    """Of a query that meets a key of zeros: it counts for nothing, and a scale for all channels would be its own."""
    encoder = Encoder(CONFIGS["bert"].replace(init_std=0.2)).eval()
    with torch.no_grad():
        for block in encoder.blocks:
            block.attention.qkv.weight[0] *= 200
            block.attention.qkv.weight[32] = block.attention.qkv.bias[32] = 0
    to_onnx(encoder, tmp_path / "encoder.onnx")
    quantise_onnx(tmp_path / "encoder.onnx", tmp_path / "int8.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"encoder.onnx", "int8.onnx"}
    batch = batch_of(LENGTHS)
    exact = OnnxRuntime.open(tmp_path / "encoder.onnx", encoder.config, threads=1)(batch)
    runtime = OnnxRuntime.open(tmp_path / "int8.onnx", encoder.config, precision="int8", threads=1)
    assert runtime.precision == "int8" and not torch.equal(runtime(batch), exact)
    assert torch.cosine_similarity(runtime(batch), exact).min() > 0.99


def test_bf16_is_near_fp32() -> None:
    encoder = Encoder(CONFIGS["bert"]).eval()
    model, batch = to_openvino(encoder), batch_of(LENGTHS)
    exact, low = (OpenVinoRuntime(model, encoder.config, precision=p, threads=1)(batch) for p in ("fp32", "bf16"))
    assert low.dtype == torch.float32 and torch.cosine_similarity(low, exact).min() > 0.999


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("int8", "f32"), ("bf16", "bf16")])
def test_openvino_is_told_its_precision_because_it_takes_bf16_by_itself(
    precision: Precision, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, object] = {}

    class Core:
        def compile_model(self, model: object, device: str, settings: dict[str, object]) -> Core:
            told.update(settings)
            return self

        def create_infer_request(self) -> None:
            """None is needed."""

    monkeypatch.setattr(import_openvino(), "Core", Core)
    OpenVinoRuntime(cast(Any, None), CONFIGS["bert"], precision, threads=1)
    assert told["INFERENCE_PRECISION_HINT"] == hint


@pytest.mark.parametrize("kind", [OpenVinoRuntime, OnnxRuntime])
def test_files_that_are_no_graphs_are_refused(kind: type[OpenVinoRuntime | OnnxRuntime], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="encoder.xml: no such file"):
        kind.open(tmp_path / "encoder.xml", CONFIGS["bert"])
    (tmp_path / "encoder.xml").write_text("<net>")
    with pytest.raises(InputError, match="encoder.xml: .* does not read it"):
        kind.open(tmp_path / "encoder.xml", CONFIGS["bert"])


def test_a_full_disk_is_told_with_the_path(tmp_path: Path) -> None:
    model, limits = to_openvino(Encoder(CONFIGS["bert"])), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match="encoder.xml: OpenVINO cannot write it, with .* MB free there"):
            save_openvino(model, tmp_path / "encoder.xml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("package", ["openvino", "onnx"])
def test_a_missing_package_names_the_mend(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'terrazzo\["):
        encoder = Encoder(CONFIGS["bert"])
        to_openvino(encoder) if package == "openvino" else to_onnx(encoder, tmp_path / "encoder.onnx")


def test_openvino_reports_nothing_to_its_maker() -> None:
    to_openvino(Encoder(CONFIGS["bert"]))
    assert sys.modules["openvino_telemetry"] is None
