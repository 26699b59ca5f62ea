"""Initial weights as the papers draw them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.gate import AttentionGate

#: Modules that write into the residual stream, by the last part of their name.
_RESIDUAL_OUTPUTS = ("attention.out", "mlp.down")


@torch.no_grad()
def initialise(model: nn.Module, config: EncoderConfig) -> None:
    """Draw all matrices and embeddings from the global generator; biases 0, norms 1.

    "normal": N(0, init_std) for everything (BERT, arXiv 1810.04805; MosaicBERT keeps it). "megatron": cut at 2
    sigma, and the projections into the residual stream divided by sqrt(2 depth) (ModernBERT, arXiv 2412.13663,
    appendix A).
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = config.init_std
            if config.init == "megatron" and name.endswith(_RESIDUAL_OUTPUTS):
                std /= math.sqrt(2 * config.depth)
            _draw(module.weight, std, truncated=config.init == "megatron")
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, AttentionGate):
            module.reset(config)
        if name == "embeddings.tokens":
            nn.init.zeros_(module.weight[config.vocab_size :])  # rows of no token stay zero under every optimizer


def _draw(weight: Tensor, std: float, truncated: bool) -> None:
    if truncated:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)
