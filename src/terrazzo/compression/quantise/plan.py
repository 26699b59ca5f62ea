"""How many bits each matrix of a model gets, and what that takes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from terrazzo.checkpoint.choice import writable
from terrazzo.checkpoint.packing import PackedShape, file_bytes
from terrazzo.checkpoint.tensors import scatter
from terrazzo.checkpoint.tokenizer import read_tokenizer, special_ids
from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.tasks.model import TaskModel

Model = TaskModel | MaskedLM | Encoder
#: Bits that a code may have.
LEVELS = (2, 3, 4, 8)
_TOKEN_TYPES = "embeddings.token_types.weight"


@config
class BitPlan:
    """Bits of every matrix that is packed.

    Args:
        bits: of each weight by its name in the encoder (blocks.0.mlp.up.weight, embeddings.tokens.weight), those of a
            head below `head.`; what is not named stays in fp16.
        group: neighbouring entries of a row that share a step and a lowest value; 0 is the whole row.
    """

    bits: dict[str, int]
    group: int = 128

    def __post_init__(self) -> None:
        for name, bits in self.bits.items():
            if not 1 <= bits <= 8:
                raise InputError(f"bits: {name} has {bits}; a code has 1 to 8")
        if self.group < 0:
            raise InputError(f"group {self.group}: entries that share a step, or 0 for the whole row")

    def shape(self, name: str, rows: int, columns: int) -> PackedShape:
        """What a matrix of this size is packed into."""
        return PackedShape(rows, columns, self.bits[name], self.group or columns)


def weights_of(model: Model) -> dict[str, nn.Parameter]:
    """Every matrix of a model that can be packed, by its name in plans: embeddings, the blocks' matrices, the head's.

    Norms and biases are not among them, nor the few rows of segment embeddings.
    """
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.numel():
            name = f"{path}.weight".removeprefix("encoder.")
            found |= {} if name == _TOKEN_TYPES else {name: module.get_parameter("weight")}
    return found


def full_name(model: Model, name: str) -> str:
    """A plan's name as the model's own state dict has it."""
    return name if isinstance(model, Encoder) or name.startswith("head.") else f"encoder.{name}"


def uniform_plan(model: Model, bits: int, group: int = 128, head_bits: int = 8) -> BitPlan:
    """The plan that gives every matrix the same bits, those of a head `head_bits`."""
    return BitPlan(
        bits={name: head_bits if name.startswith("head.") else bits for name in weights_of(model)}, group=group
    )


def check_plan(model: Model, plan: BitPlan) -> None:
    """Raise InputError where a plan names a matrix that the model has not."""
    known = weights_of(model)
    for name in plan.bits:
        if name not in known:
            raise InputError(f"bits: the model has no matrix {name!r}: {nearest(name, known)}")


def packed_bytes(model: Model, plan: BitPlan, tokenizer_file: Path | None = None) -> int:
    """Bytes of the files of weights that `save_packed` writes: encoder and head; known without quantising.

    Raises:
        InputError: a matrix that the model has not.
    """
    check_plan(model, plan)
    state = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    apart = {name for name in state if name.startswith("head.")} if isinstance(model, TaskModel) else set()
    special = {} if tokenizer_file is None else special_ids(read_tokenizer(tokenizer_file))
    layout, _ = writable(model.config, special)
    with_head = isinstance(model, MaskedLM)
    packed: dict[str, PackedShape] = {}
    plain: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        if name in apart:
            continue
        own = name if name.startswith("head.") else f"encoder.{name}"
        for part, piece in scatter({own: tensor}, layout, model.config.vocab_size, with_head).items():
            if name in plan.bits:
                packed[part] = plan.shape(name, *piece.shape)
            else:
                plain[part] = _half(piece)
    body = file_bytes(packed, plain)
    if not isinstance(model, TaskModel):
        return body
    heads = {name: plan.shape(name, *state[name].shape) for name in apart if name in plan.bits}
    return body + file_bytes(heads, {name: _half(state[name]) for name in apart if name not in plan.bits})


def _half(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return torch.float16 if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape)


def payloads(model: Model, plan: BitPlan, levels: tuple[int, ...]) -> dict[str, list[int]]:
    """Bytes of the codes and grids of every matrix of a plan at each of `levels`, without the file's header."""
    sizes: dict[str, list[int]] = {}
    weights = weights_of(model)
    for name in plan.bits:
        rows, columns = weights[name].shape
        if name == "embeddings.tokens.weight":
            rows = min(rows, _stored_rows(model))
        sizes[name] = [PackedShape(rows, columns, bits, plan.group or columns).bytes for bits in levels]
    return sizes


def _stored_rows(model: Model) -> int:
    layout, _ = writable(model.config, {})
    return model.config.vocab_size if layout.published else model.config.padded_vocab_size


def mean_bits(model: Model, plan: BitPlan) -> float:
    """Bits of an entry on average over the matrices of a plan, grids included."""
    weights = weights_of(model)
    shapes: Mapping[str, PackedShape] = {name: plan.shape(name, *weights[name].shape) for name in plan.bits}
    return 8 * sum(s.bytes for s in shapes.values()) / sum(s.rows * s.columns for s in shapes.values())
