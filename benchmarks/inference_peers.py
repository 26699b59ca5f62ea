"""What `encode` is compared with: other ways to run MiniLM on a CPU, each at its best batch size and number of streams.

Every peer gets the texts tokenized by the same fast tokenizer, sorted by their length in tokens, and pools in numpy;
only sentence-transformers does all of it itself.

Shapes: B texts, S padded length, D width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from terrazzo.runtime.openvino import import_openvino
from terrazzo.runtime.quantise import import_nncf

MAX_LEN = 256
CORES = len(os.sched_getaffinity(0))
#: Hidden states `(B, S, D)` of a padded batch, by the names of transformers' arguments.
Infer = Callable[[Mapping[str, np.ndarray]], np.ndarray]
#: Opens a peer for a number of batches that run at the same time.
Opener = Callable[[Path, Path, int], Infer]


@dataclass(frozen=True)
class Setting:
    """Texts of a batch, and batches at the same time."""

    batch: int
    streams: int


class Padded:
    """Encodes texts in sorted, padded batches.

    Args:
        model: folder of the model; prepared: of the graphs made from it.
    """

    def __init__(self, opener: Opener, model: Path, prepared: Path, setting: Setting) -> None:
        self.infer, self.batch, self.streams = opener(model, prepared, setting.streams), setting.batch, setting.streams
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_LEN)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Mean-pooled vectors `(B, D)`, in the order of the texts."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts = [order[first : first + self.batch] for first in range(0, len(order), self.batch)]
        with ThreadPoolExecutor(self.streams) as pool:
            found = list(pool.map(lambda part: self._vectors([ids[row] for row in part]), parts))
        vectors_BD = np.empty((len(ids), found[0].shape[1]), dtype=np.float32)
        for part, values in zip(parts, found, strict=True):
            vectors_BD[part] = values
        return vectors_BD

    def _vectors(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        size = max(map(len, rows))
        ids_BS, mask_BS = np.zeros((2, len(rows), size), dtype=np.int64)
        for number, row in enumerate(rows):
            ids_BS[number, : len(row)] = row
            mask_BS[number, : len(row)] = 1
        inputs = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        hidden_BSD = self.infer(inputs)
        weights_BS1 = mask_BS[..., None].astype(np.float32)
        pooled: np.ndarray = (hidden_BSD * weights_BS1).sum(1) / weights_BS1.sum(1)
        return pooled


class SentenceTransformers:
    """`SentenceTransformer.encode` as it comes."""

    def __init__(self, model: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(model), device="cpu")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `(B, D)`, of length 1 as this model's modules have it."""
        return np.asarray(self.model.encode(list(texts), show_progress_bar=False))


def transformers_peer(dtype: torch.dtype) -> Opener:
    """transformers' BertModel with SDPA attention."""

    def opener(model: Path, prepared: Path, streams: int) -> Infer:
        network = _network(model).to(dtype)

        @torch.inference_mode()
        def infer(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
            return np.asarray(network(**tensors).last_hidden_state.float())

        return infer

    return opener


def onnx_peer(file: str) -> Opener:
    """ONNX Runtime on the graph of transformers' BertModel."""

    def opener(model: Path, prepared: Path, streams: int) -> Infer:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, CORES // streams)
        session = onnxruntime.InferenceSession(str(prepared / file), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["last_hidden_state"], dict(inputs))[0]

    return opener


def openvino_peer(file: str) -> Opener:
    """OpenVINO on the graph of transformers' BertModel; streams are its own throughput streams."""

    def opener(model: Path, prepared: Path, streams: int) -> Infer:
        settings = {"INFERENCE_NUM_THREADS": CORES, "NUM_STREAMS": streams}
        compiled = import_openvino().Core().compile_model(prepared / file, "CPU", settings)
        own = threading.local()

        def infer(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            if not vars(own):
                own.request = compiled.create_infer_request()
            return np.array(own.request.infer(dict(inputs), share_inputs=True, share_outputs=True)[0])

        return infer

    return opener


#: Texts of a batch that peers are tried with.
BATCHES = (4, 8, 16, 32, 64)
#: The peers, and how many batches at the same time each is tried with.
PADDED: dict[str, tuple[Opener, tuple[int, ...]]] = {
    "transformers fp32": (transformers_peer(torch.float32), (1,)),
    "transformers bf16": (transformers_peer(torch.bfloat16), (1,)),
    "ONNX Runtime fp32": (onnx_peer("model.onnx"), (1, CORES)),
    "ONNX Runtime int8": (onnx_peer("model-int8.onnx"), (1, CORES)),
    "OpenVINO fp32": (openvino_peer("model.xml"), (1, CORES)),
    "OpenVINO int8": (openvino_peer("model-int8.xml"), (1, CORES)),
}
SENTENCE_TRANSFORMERS = "sentence-transformers"


def prepare(model: Path, prepared: Path, texts: Sequence[str]) -> None:
    """Write the graphs of transformers' model: ONNX and OpenVINO, fp32 and int8, each by its own tool's usual way.

    int8 is dynamic in ONNX Runtime (`quantize_dynamic`, a scale a channel) and static in OpenVINO (`nncf.quantize` for
    transformers, its ranges from `texts`).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    openvino, nncf = import_openvino(), import_nncf()
    prepared.mkdir(parents=True, exist_ok=True)
    network = _network(model)
    example = {name: torch.ones(2, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    exact, rounded = prepared / "model.onnx", prepared / "model-int8.onnx"
    _to_onnx(network, example, exact)
    quantize_dynamic(exact, rounded, weight_type=QuantType.QInt8, per_channel=True)
    graph = openvino.convert_model(network, example_input=example)
    openvino.save_model(graph, prepared / "model.xml", compress_to_fp16=False)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LEN)
    inputs = [_alone(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    quantised = nncf.quantize(
        graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
    )
    openvino.save_model(quantised, prepared / "model-int8.xml")


def _network(model: Path) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(model, add_pooling_layer=False, dtype=torch.float32).eval()


def _to_onnx(network: Any, example: Mapping[str, torch.Tensor], path: Path) -> None:
    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.network(ids, mask, types).last_hidden_state
            return hidden

    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        Hidden(),
        tuple(example.values()),
        str(path),
        input_names=list(example),
        output_names=["last_hidden_state"],
        dynamic_axes={name: axes for name in [*example, "last_hidden_state"]},
        dynamo=False,
    )


def _alone(ids: Sequence[int]) -> dict[str, np.ndarray]:
    ids_1S = np.asarray([ids], dtype=np.int64)
    return {"input_ids": ids_1S, "attention_mask": np.ones_like(ids_1S), "token_type_ids": np.zeros_like(ids_1S)}
