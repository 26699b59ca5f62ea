"""What a runtime is, and the one that every model has: PyTorch.

Shapes: T packed tokens, D width, M selected tokens.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed

Precision = Literal["fp32", "bf16", "int8"]


@runtime_checkable
class Runtime(Protocol):
    """An encoder ready to run; it stands wherever a head asks for `encoder(batch, select_M)`.

    Calls may come from `streams` threads at once.

    Attributes:
        name: "torch", "openvino" or "onnx".
        precision: of the matrix products.
        batch_tokens: tokens that run fastest together on this machine, padding included where it pads.
        streams: batches that run at the same time, each on its share of the cores.
        pads: whether a batch costs its number of documents times its longest.
    """

    name: str
    precision: Precision
    config: EncoderConfig
    batch_tokens: int
    streams: int
    pads: bool

    @property
    def device(self) -> torch.device:
        """Where hidden states come out."""
        ...

    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)`, or `(M, D)` of the tokens at `select_M`; fp32 on the CPU for exported graphs."""
        ...


class TorchRuntime:
    """The encoder itself, packed, in the precision of its parameters.

    Args:
        batch_tokens: None takes 4,096 on a CPU, whose caches hold what so many need, and 16,384 on a GPU.
        streams: None takes one for each of PyTorch's threads on a CPU, one on a GPU.
    """

    name = "torch"
    pads = False

    def __init__(self, encoder: Encoder, batch_tokens: int | None = None, streams: int | None = None) -> None:
        weight = encoder.embeddings.tokens.weight
        self.encoder, self.config = encoder.eval(), encoder.config
        self.batch_tokens = batch_tokens or (16_384 if weight.is_cuda else 4096)
        self.streams = streams or (1 if weight.is_cuda else torch.get_num_threads())
        self.precision: Precision = "bf16" if weight.dtype == torch.bfloat16 else "fp32"

    @property
    def device(self) -> torch.device:
        return self.encoder.embeddings.tokens.weight.device

    @torch.inference_mode()
    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)` or `(M, D)`, in the encoder's precision and on its device."""
        hidden: Tensor = self.encoder(batch.to(self.device), select_M)
        return hidden


def share_threads(threads: int, streams: int) -> None:
    """Leave the calling thread, one of `streams` that run at the same time, its share of PyTorch's `threads`."""
    torch.set_num_threads(max(1, threads // streams))
