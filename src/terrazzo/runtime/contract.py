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
        batch_tokens: tokens that run fastest together on this machine.
        streams: batches that run at the same time, each on its share of the cores.
    """

    name: str
    precision: Precision
    config: EncoderConfig
    batch_tokens: int
    streams: int

    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)`, or `(M, D)` of the tokens at `select_M`; fp32 on the CPU for exported graphs."""
        ...


class TorchRuntime:
    """The encoder itself, packed, in the precision of its parameters."""

    name = "torch"

    def __init__(self, encoder: Encoder, batch_tokens: int = 16_384, streams: int = 1) -> None:
        self.encoder, self.config = encoder.eval(), encoder.config
        self.batch_tokens, self.streams = batch_tokens, streams
        low = encoder.embeddings.tokens.weight.dtype == torch.bfloat16
        self.precision: Precision = "bf16" if low else "fp32"

    @torch.inference_mode()
    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)` or `(M, D)`, in the encoder's precision and on its device."""
        hidden: Tensor = self.encoder(batch.to(self.encoder.embeddings.tokens.weight.device), select_M)
        return hidden
