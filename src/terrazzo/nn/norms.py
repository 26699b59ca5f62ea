"""LayerNorm and RMSNorm, in the precision of their input or in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.nn.config import EncoderConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm; with `low_precision` a bf16 or fp16 input is normed without a detour through fp32.

    Reference: MosaicBERT (arXiv 2312.17482), section 3.1, "Low precision LayerNorm".
    """

    def __init__(self, width: int, eps: float, bias: bool, low_precision: bool) -> None:
        super().__init__(width, eps=eps, bias=bias)
        self.low_precision = low_precision

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        if not self.low_precision:
            return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class RMSNorm(nn.Module):
    """Scale by the root mean square, no centring and no bias.

    Reference: Zhang and Sennrich (arXiv 1910.07467), Eq. 4.
    """

    def __init__(self, width: int, eps: float, low_precision: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.low_precision = low_precision

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[-1],)
        if x.dtype == self.weight.dtype or self.low_precision:
            with torch.autocast(x.device.type, enabled=False):
                return F.rms_norm(x, shape, self.weight.to(x.dtype), self.eps)
        return F.rms_norm(x.float(), shape, self.weight, self.eps).to(x.dtype)


def build_norm(config: EncoderConfig) -> nn.Module:
    """The norm that a config asks for, over its width."""
    if config.norm == "rms":
        return RMSNorm(config.width, config.norm_eps, config.low_precision_norm)
    return LayerNorm(config.width, config.norm_eps, config.norm_bias, config.low_precision_norm)
