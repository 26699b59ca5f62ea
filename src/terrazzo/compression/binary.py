"""Binary encoders: made from trained ones, packed at one bit an entry, and their products by XNOR and counting bits.

The products show that what is packed computes what training computed. They are exact, and no faster than floats.

Shapes: T tokens, O rows, I columns, W bytes of I signs.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from terrazzo.checkpoint.packing import PackedTensor
from terrazzo.compression.quantise import BitPlan, Quantised
from terrazzo.compression.sites import matrices
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.nn.binary import signs
from terrazzo.tasks.model import TaskModel

M = TypeVar("M", bound=TaskModel | MaskedLM | Encoder)
_TABLE = "embeddings.tokens.weight"
#: Bits that are set in each byte.
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
#: Bytes that one product compares at a time.
_AT_ONCE = 1 << 24


def binarise(encoder: Encoder, embeddings: bool = False) -> Encoder:
    """A binary encoder with the weights of a trained one behind its signs, to be trained on.

    Args:
        embeddings: token embeddings become binary too; positions and segments never do.

    Reference: BiBERT (arXiv 2203.06390): the student begins as the teacher.
    """
    binary = Encoder(encoder.config.replace(binary=True, binary_embeddings=embeddings), encoder.backend)
    binary.load_state_dict(encoder.state_dict())
    return binary.train(encoder.training)


@torch.no_grad()
def pack_binary(model: M) -> Quantised[M]:
    """A copy of a binary model whose binary matrices are signs with one fp16 scale a row, and the rest fp16.

    `save_packed` writes it. Its binary matrices are their binary values, which binarised again are themselves; it
    differs from `model` by the rounding to fp16 alone.

    Raises:
        InputError: the model's config is not binary, or its masked-language-model head reads a binary table as it was.
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    if not encoder.config.binary:
        raise InputError("binary: this model's weights are real; set the field binary and train it first (binarise)")
    if isinstance(model, MaskedLM) and encoder.config.binary_embeddings:
        raise InputError(
            "binary_embeddings: the head reads the real table, which the file would not hold; pack .encoder"
        )
    small = copy.deepcopy(model)
    for tensor in small.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    names = [name for name, weight in matrices(encoder).items() if weight.numel()]
    names += [_TABLE] if encoder.config.binary_embeddings else []
    before, after = encoder.state_dict(), (small if isinstance(small, Encoder) else small.encoder).state_dict()
    packed = {name: pack_signs(before[name]) for name in names}
    for name, tensor in packed.items():
        after[name].copy_(tensor.values())
    prefix = "" if isinstance(model, Encoder) else "encoder."
    plan = BitPlan(bits=dict.fromkeys(names, 1), group=0)
    return Quantised(small, plan, {f"{prefix}{name}": tensor for name, tensor in packed.items()})


def pack_signs(weight_OI: Tensor) -> PackedTensor:
    """The binary values of a weight as codes of one bit, a group a row: 0 is minus the scale, 1 the scale."""
    weight_OI = weight_OI.detach().float().cpu()
    codes_OI = (weight_OI - weight_OI.mean(1, keepdim=True) >= 0).to(torch.uint8)
    scale_O1 = weight_OI.abs().mean(1, keepdim=True).half()
    grid_OG2 = torch.stack((2 * scale_O1, -scale_O1), dim=-1)
    assert grid_OG2.isfinite().all(), "a scale is beyond fp16"
    return PackedTensor(codes_OI, grid_OG2, bits=1, group=max(1, weight_OI.shape[1]))


def pack_bits(positive_OI: np.ndarray) -> np.ndarray:
    """Booleans `(O, I)` as bits, uint8 `(O, W)`; the last byte is filled up with zeros."""
    return np.packbits(positive_OI, axis=1)


def xnor_matmul(left_TW: np.ndarray, right_OW: np.ndarray, width: int) -> np.ndarray:
    """The product `(T, O)` of two matrices of +1 and -1, given as the bits of what is +1: `width - 2 popcount(a ^ b)`.

    The bits that fill the last byte are equal and so count nothing. int32, exact.

    Reference: XNOR-Net (arXiv 1603.05279), section 3.2; BiBERT (arXiv 2203.06390), section 2.
    """
    step = max(1, _AT_ONCE // max(1, right_OW.size))
    parts = [left_TW[start : start + step, None] ^ right_OW for start in range(0, len(left_TW), step)]
    differing = [_ONES[part].sum(-1, dtype=np.int32) for part in parts]
    return width - 2 * np.concatenate(differing) if parts else np.zeros((0, len(right_OW)), np.int32)


def and_matmul(seen_TW: np.ndarray, right_OW: np.ndarray) -> np.ndarray:
    """The product `(T, O)` of a matrix of 0 and 1 with one of +1 and -1, given as bits: attention and its values.

    Of the entries that are seen, those that are +1 less those that are -1. int32, exact.
    """
    positive, negative = (_ONES[seen_TW[:, None] & bits].sum(-1, dtype=np.int32) for bits in (right_OW, ~right_OW))
    return positive - negative


def xnor_linear(x_TI: Tensor, weight: PackedTensor, bias_O: Tensor | None) -> Tensor:
    """What a binary layer gives for inputs `(T, I)`, from packed signs: counts, then a scale and a bias a row."""
    x_TW, weight_OW = pack_bits((signs(x_TI) > 0).numpy()), pack_bits(weight.codes_OI.numpy() > 0)
    counts_TO = torch.from_numpy(xnor_matmul(x_TW, weight_OW, x_TI.shape[1]))
    out_TO = counts_TO * -weight.grid_OG2[:, 0, 1].float()
    return out_TO if bias_O is None else out_TO + bias_O
