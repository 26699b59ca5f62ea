"""Learning from a teacher: its answers, the hidden states of its blocks, how its tokens relate to each other.

Shapes: B documents, C outputs of the head, T packed tokens, D width, M selected tokens, R relation heads, L tokens of a
document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.losses import masked_log_softmax
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.span import SpanTask, allowed_scores
from terrazzo.tasks.task import Task


@config
class DistillConfig:
    """What a student learns from, each with its weight; 0 leaves a part out.

    Args:
        labels: the task's own loss on the rows' answers.
        outputs: the teacher's answers, softened by `temperature`.
        hidden: the teacher's hidden states after its blocks, by the mean squared error of each token's; student and
            teacher must have one width.
        relations: how tokens of a document relate by the queries, keys and values of the last blocks, in
            `relation_heads` parts; widths may differ.
        relation_kind: "softmax" compares attention-like distributions, "direction" normalised similarities.
        relation_blocks: relations of the last pair of blocks alone, or of every pair, added up.
        layers: the teacher's block for each block of the student, -1 for none; None spreads the student's blocks evenly
            over the teacher's, so that equal depths pair up and the last goes with the last.

    Reference: hardness 1 and temperature 2 are oBERT's (arXiv 2203.07259); hidden states of every token ZipLM's (arXiv
    2302.04089); relations MiniLMv2's (arXiv 2012.15828), their direction BiBERT's (arXiv 2203.06390).
    """

    labels: float = 0.0
    outputs: float = 1.0
    temperature: float = 2.0
    hidden: float = 0.0
    relations: float = 0.0
    relation_heads: int = 12
    relation_kind: Literal["softmax", "direction"] = "softmax"
    relation_blocks: Literal["last", "every"] = "last"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("labels", "outputs", "hidden", "relations")}
        for name, weight in weights.items():
            if not weight >= 0:
                raise InputError(f"{name}: a weight from 0 up, got {weight}")
        if not any(weights.values()):
            raise InputError("labels, outputs, hidden and relations are all 0: there is nothing to learn from")
        if not self.temperature > 0 or self.relation_heads < 1:
            raise InputError("temperature must be above 0, relation_heads at least 1")

    def related(self, pairs: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Of the pairs of blocks those whose relations are compared."""
        if not self.relations:
            return ()
        return pairs if self.relation_blocks == "every" else pairs[-1:]

    def pairs(self, student: EncoderConfig, teacher: EncoderConfig) -> list[tuple[int, int]]:
        """Which of the student's blocks learns from which of the teacher's.

        Raises:
            InputError: `layers` does not fit both.
        """
        layers = self.layers
        if layers is None:
            layers = tuple((block + 1) * teacher.depth // student.depth - 1 for block in range(student.depth))
        if len(layers) != student.depth or not all(-1 <= layer < teacher.depth for layer in layers):
            raise InputError(
                f"layers {layers}: one block of the teacher's {teacher.depth}, or -1, for each of {student.depth}"
            )
        return [(block, layer) for block, layer in enumerate(layers) if layer >= 0]


def answers_loss(task: Task, student: Tensor, teacher: Tensor, batch: Packed, temperature: float) -> Tensor:
    """How far the student's answers are from the teacher's, summed over predictions; 0 where they are equal.

    Classes, tags and places: T^2 KL(teacher / T || student / T). Several classes: that of each yes or no, their mean.
    Values: squared error.

    Reference: Hinton, Vinyals and Dean (arXiv 1503.02531), section 2.
    """
    if isinstance(task, RegressionTask):
        return F.mse_loss(student.float(), teacher.float(), reduction="sum")
    hot, soft = student.float() / temperature, teacher.float() / temperature
    if isinstance(task, LabelTask) and task.several:
        entropy = F.binary_cross_entropy_with_logits(soft, soft.sigmoid(), reduction="none")
        cross = F.binary_cross_entropy_with_logits(hot, soft.sigmoid(), reduction="none")
        return temperature**2 * (cross - entropy).mean(1).sum()
    if isinstance(task, SpanTask):
        scores = (allowed_scores(scores_T2, batch) for scores_T2 in (hot, soft))
        rows = [batch.to_padded(scores_T2, -torch.inf).transpose(1, 2).flatten(0, 1) for scores_T2 in scores]
        return temperature**2 * kl_sum(*rows) / 2
    own_BC = None
    if isinstance(task, MultiTask):
        assert batch.problems_B is not None, "the batch has no problems"
        own_BC = task.own_classes(batch.problems_B)
    return temperature**2 * kl_sum(hot, soft, own_BC)


def kl_sum(student_BC: Tensor, teacher_BC: Tensor, own_BC: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of rows of logits, over each row's own classes, summed; minus infinity is never chosen."""
    log_q, log_p = (masked_log_softmax(logits_BC, own_BC) for logits_BC in (student_BC, teacher_BC))
    possible = log_p > -torch.inf
    gap = torch.where(possible, log_p, 0) - torch.where(possible, log_q, 0)
    return (log_p.exp() * gap).sum()


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared error over tokens and width, the mean over pairs of blocks; packed tokens have no padding."""
    errors = [F.mse_loss(mine.float(), theirs.float()) for mine, theirs in zip(student, teacher, strict=True)]
    return torch.stack(errors).mean()


def relations_loss(
    student_T3D: Tensor, teacher_T3D: Tensor, batch: Packed, heads: int, kind: Literal["softmax", "direction"]
) -> Tensor:
    """How differently tokens relate by queries, by keys and by values, the mean over the three, heads and tokens.

    Args:
        student_T3D, teacher_T3D: queries, keys and values of a block, of any two widths that `heads` divides.
        kind: "softmax": KL of softmax(A A' / sqrt(d)); "direction": distance of A A' / ||A A'||, a document each.

    Reference: MiniLMv2 (arXiv 2012.15828), Eq. 4 to 6; BiBERT (arXiv 2203.06390), Eq. 14 to 16.
    """
    real_BL = batch.to_padded(torch.ones_like(batch.tokens_T), 0).bool()
    pair_BLL = real_BL[:, :, None] & real_BL[:, None, :]
    mine, theirs = (_similarities(x_T3D, batch, heads) for x_T3D in (student_T3D, teacher_T3D))
    if kind == "direction":
        mine, theirs = (_normalised(x.masked_fill(~pair_BLL[:, None, None], 0)) for x in (mine, theirs))
        return (mine - theirs).flatten(3).norm(dim=3).mean()
    outside = ~real_BL[:, None, None, None, :]
    rows = real_BL[:, None, None, :].expand(mine.shape[:4])
    logits = (x.masked_fill(outside, -torch.inf)[rows] for x in (mine, theirs))
    return kl_sum(*logits) / int(rows.sum())


def _similarities(x_T3D: Tensor, batch: Packed, heads: int) -> Tensor:
    """A A' / sqrt(d) of queries, keys and values in `heads` parts, `(B, 3, R, L, L)`."""
    parts_T3RH = x_T3D.float().unflatten(2, (heads, -1))
    parts_B3RLH = batch.to_padded(parts_T3RH).permute(0, 2, 3, 1, 4)
    return parts_B3RLH @ parts_B3RLH.mT * parts_B3RLH.shape[-1] ** -0.5


def _normalised(x_B3RLL: Tensor) -> Tensor:
    return x_B3RLL / x_B3RLL.flatten(3).norm(dim=3).clamp_min(1e-12)[..., None, None]


@dataclass
class Taps:
    """What the blocks of one forward pass gave.

    Args:
        hidden: by block, `(T, D)`, or `(M, D)` where the last block ran for some tokens alone.
        qkv: queries, keys and values by block, `(T, 3, N * H)`.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    qkv: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def tapped(encoder: Encoder, hidden: Sequence[int] = (), qkv: Sequence[int] = ()) -> Iterator[Taps]:
    """The outputs of some blocks, and of some blocks' projections, of the forward passes inside."""
    taps, handles = Taps(), []
    for store, layers, part in ((taps.hidden, hidden, ""), (taps.qkv, qkv, ".attention.qkv")):
        for layer in layers:
            module = encoder.get_submodule(f"blocks.{layer}{part}")
            handles.append(module.register_forward_hook(_keep(store, layer, split=bool(part))))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _keep(store: dict[int, Tensor], layer: int, split: bool) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        store[layer] = output.unflatten(1, (3, -1)) if split else output

    return hook


def check_pair(options: DistillConfig, student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Refuse a teacher that the terms asked for cannot be taken from.

    Raises:
        InputError: naming the field and both values.
    """
    pairs = options.pairs(student, teacher)
    if student.vocab_size != teacher.vocab_size:
        raise InputError(
            f"teacher: {teacher.vocab_size} tokens, the student has {student.vocab_size}: not one tokenizer"
        )
    if options.hidden and student.width != teacher.width:
        raise InputError(f"hidden {options.hidden}: the teacher has width {teacher.width}, the student {student.width}")
    for mine, theirs in options.related(pairs or [(0, 0)]):
        for who, shape, layer in (("student", student, mine), ("teacher", teacher, theirs)):
            inner = len(shape.layer_heads(layer)) * shape.head_width
            if not inner or inner % options.relation_heads:
                raise InputError(f"relation_heads {options.relation_heads}: block {layer} of the {who} is {inner} wide")
