"""Ways to run the same weights over the same documents, and what each takes; all take turns on every batch.

Shapes: T packed tokens, B documents, S padded length, D width, N heads, H head width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.bytetransformer.mixes import Mix
from terrazzo.checkpoint import save_model
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.nn.backends import BACKENDS, default_backend
from terrazzo.runtime.padded import PaddedEncoder

#: Runs a batch; `(T, D)` packed or `(B, S, D)` padded hidden states.
Arm = Callable[[Mix], Tensor]


@dataclass(frozen=True)
class Spent:
    """Seconds of one run: of this process on its cores, and on the clock."""

    cpu: float
    wall: float


def torch_arms(encoder: Encoder, work: Path) -> dict[str, Arm]:
    """Packed, the same modules padded, and transformers' BertModel with the same weights."""
    padded, theirs = PaddedEncoder(encoder), bert_model(encoder, work)
    return {
        "packed": lambda mix: encoder(mix.packed),
        "padded": lambda mix: padded(mix.ids_BS, mix.lengths_B),
        "transformers": lambda mix: theirs(mix.ids_BS, attention_mask=mix.mask_BS).last_hidden_state,
    }


def bert_model(encoder: Encoder, work: Path) -> Any:
    """transformers' BertModel with the weights of `encoder`, in its precision and on its device."""
    from transformers import AutoModel

    weight = encoder.embeddings.tokens.weight
    folder = save_model(work / "model", encoder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=weight.dtype)
    return model.to(weight.device).eval()


def attention_arms(config: EncoderConfig, mix: Mix, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """One layer's attention: ours over packed tokens, and plain PyTorch over padded ones (products, mask, softmax)."""
    heads, head_width, device = config.num_heads, config.head_width, mix.ids_BS.device
    qkv_T3NH = torch.randn(mix.packed.num_tokens, 3, heads, head_width, dtype=dtype, device=device)
    q, k, v = torch.randn(3, *mix.ids_BS.shape[:1], heads, mix.size, head_width, dtype=dtype, device=device)
    hidden_B11S = mix.mask_BS[:, None, None, :] == 0
    backend = BACKENDS[default_backend(device)]

    def plain() -> Tensor:
        scores = (q @ k.mT) * head_width**-0.5
        return scores.masked_fill(hidden_B11S, -1e30).softmax(-1) @ v

    return {
        "packed": lambda: backend.attend(qkv_T3NH, backend.plan(mix.packed, None, None), 0.0),
        "plain": plain,
    }


@torch.inference_mode()
def take_turns(arms: Mapping[str, Callable[[], Tensor]], turn: int) -> dict[str, tuple[Spent, Tensor]]:
    """What each arm takes and gives; `turn` decides who begins."""
    names = list(arms)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    return {name: _timed(arms[name]) for name in names}


def on(arms: Mapping[str, Arm], mix: Mix) -> dict[str, Callable[[], Tensor]]:
    """The arms bound to one batch."""
    return {name: (lambda arm=arm: arm(mix)) for name, arm in arms.items()}  # type: ignore[misc]


def _timed(arm: Callable[[], Tensor]) -> tuple[Spent, Tensor]:
    _settle()
    cpu, wall = time.process_time(), time.perf_counter()
    out = arm()
    _settle()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall), out


def _settle() -> None:
    """Wait for the GPU, whose work would otherwise be counted to whoever asks next."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
