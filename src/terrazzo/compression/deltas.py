"""What a fine-tuning changed: its difference to the base, most of it dropped at random.

Only the encoder has a difference. Everything beside it (the head of the task) is kept whole. Files: delta_files.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor

from terrazzo.checkpoint import empty_model, load_model, load_tokenizer
from terrazzo.compression.database import encoder_fingerprint
from terrazzo.config import nearest, to_dict
from terrazzo.data.keyed import derive
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.tasks.adapters.base import largest
from terrazzo.tasks.model import LoadedTask, TaskModel, load_task_model, model_folder
from terrazzo.tasks.task import Task

Values = Literal["fp16", "fp32"]
#: Which entries stay: any, as DARE draws them; the likelier the larger; none but the largest.
Choice = Literal["even", "size", "largest"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
#: Fields of an architecture by which models of one base may differ.
_FREE_FIELDS = ("dropout", "attention_dropout")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The encoder that fine-tunings began with.

    Args:
        state: its tensors by name, fp32.
        fingerprint: of the encoder's architecture and values; it does not depend on the files' format.
    """

    folder: Path
    config: EncoderConfig
    state: Mapping[str, Tensor]
    tokenizer: Tokenizer
    fingerprint: str

    @classmethod
    def open(cls, path: str | Path) -> Base:
        """Read a model folder, ours or a published one.

        Raises:
            InputError: as `load_model`.
        """
        folder = model_folder(path)
        loaded = load_model(folder)
        encoder = loaded.encoder if isinstance(loaded, MaskedLM) else loaded
        return cls(
            folder=folder,
            config=encoder.config,
            state=encoder.state_dict(),
            tokenizer=load_tokenizer(folder, encoder.config),
            fingerprint=encoder_fingerprint(encoder)[:16],
        )

    @property
    def bytes(self) -> int:
        """Of the encoder's tensors in fp32."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def open_task(self, path: str | Path) -> LoadedTask:
        """Read a fine-tuning of this base.

        Raises:
            InputError: no task folder, another architecture or another vocabulary.
        """
        loaded = load_task_model(path)
        for name, value in to_dict(self.config).items():
            other = to_dict(loaded.model.config)[name]
            if other != value and name not in _FREE_FIELDS:
                raise InputError(f"{path}: {name} is {other}, that of the base {self.folder} is {value}: another base")
        if loaded.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise InputError(f"{path}: its vocabulary is not that of the base {self.folder}: another base")
        return loaded


def kept_entries(shape: torch.Size, p: float, key: int) -> Tensor:
    """bool: each entry kept with probability 1 - p, drawn from a key alone."""
    draw = torch.Generator().manual_seed(key % 2**63)
    return torch.rand(shape, generator=draw) >= p


def drop_and_rescale(change: Tensor, kept: Tensor, p: float, rescale: bool = True) -> Tensor:
    """The kept entries over 1 - p, so that their expectation is the whole change; the others 0.

    Reference: DARE (arXiv 2311.03099), Eq. 1 to 3.
    """
    dropped = change * kept
    return dropped / (1 - p) if rescale else dropped


def drop_by_size(change: Tensor, p: float, key: int) -> Tensor:
    """Entries kept with a probability that grows with their size, 1 - p of them expected, each over its own.

    The expectation is the whole change, as with even probabilities; of all draws with that expectation and that many
    entries this one is off by the least squares: q_i = min(1, c |change_i|). An entry that is kept without being sure
    to be is of size 1 / c, whatever it was.
    """
    sizes_N = change.abs().flatten().double()
    wanted = (1 - p) * sizes_N.numel()
    ordered_N = sizes_N.sort(descending=True).values
    rest_N = ordered_N.flip(0).cumsum(0).flip(0)  # of this and all smaller ones
    slope_N = (wanted - torch.arange(len(ordered_N))) / rest_N.clamp(min=torch.finfo(torch.float64).tiny)
    sure = int((slope_N * ordered_N > 1).sum())  # a prefix: where one entry is sure, so is each larger one
    chance_N = (sizes_N * slope_N[sure]).clamp(max=1) if sure < len(slope_N) else torch.ones_like(sizes_N)
    draw = torch.Generator().manual_seed(key % 2**63)
    kept_N = torch.rand(len(chance_N), generator=draw, dtype=torch.float64) < chance_N
    scaled_N = change.flatten().double() / chance_N.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(kept_N, scaled_N, 0.0).to(change.dtype).view_as(change)


def keep_largest(change: Tensor, p: float, rescale: bool = True) -> Tensor:
    """The largest entries; what is left of each row multiplied so that it goes as far along the row as all of it did.

    The factor is at most 1 / (1 - p), DARE's own.
    """
    kept = change * largest(change.abs(), min(int(p * change.numel()), change.numel() - 1))
    if not rescale:
        return kept
    whole, left = (part.square().sum(-1, keepdim=True) for part in (change, kept))
    return kept * (whole / left).nan_to_num(posinf=0.0).clamp(max=1 / (1 - p))


def drop_all(
    changes: Mapping[str, Tensor],
    p: float,
    seed: int,
    *,
    label: str = "",
    rescale: bool = True,
    choice: Choice = "even",
) -> dict[str, Tensor]:
    """Each tensor without the share `p` of its entries, chosen with a key of its own from seed, label and name.

    Args:
        choice: "even" is `drop_and_rescale`, "size" is `drop_by_size`, "largest" is `keep_largest`.

    Raises:
        InputError: p is no probability below 1, an unknown choice, or "size" without rescaling.
    """
    check_probability(p)
    if choice not in CHOICES:
        raise InputError(f"choice {choice!r}: {nearest(choice, CHOICES)}")
    if choice == "size" and not rescale:
        raise InputError('choice "size" is made to be rescaled; take "largest" to keep entries as they are')
    found = {}
    for name, change in changes.items():
        key = derive(seed, "dare", label, name)
        if choice == "even":
            found[name] = drop_and_rescale(change, kept_entries(change.shape, p, key), p, rescale)
        else:
            found[name] = drop_by_size(change, p, key) if choice == "size" else keep_largest(change, p, rescale)
    return found


def check_probability(p: float) -> None:
    """Refuse a probability to drop entries by that leaves none or more than all."""
    if not 0 <= p < 1:
        raise InputError(f"p is the probability to drop an entry, at least 0 and below 1, got {p}")


def changes_of(model: TaskModel, base: Base) -> dict[str, Tensor]:
    """What fine-tuning added to every tensor of the encoder; the head is no part of it."""
    state = model.encoder.state_dict()
    return {name: state[name] - tensor for name, tensor in base.state.items()}


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A fine-tuning as what it adds to its base.

    Args:
        base: fingerprint of the base.
        changes: of the encoder's tensors that change, dense, with exactly the values that a file holds.
        head: tensors beside the encoder, whole, by their names in the task's model.
        p: share that was dropped; choice: what stayed, see `drop_all`.
        values: precision of a file's values.
        shifts: for each change the power of two that its fp16 values are multiplied by; 0 in fp32.
    """

    base: str
    changes: Mapping[str, Tensor]
    shifts: Mapping[str, int]
    head: Mapping[str, Tensor]
    task: Task
    max_len: int
    p: float
    seed: int
    values: Values
    choice: Choice = "even"

    @classmethod
    def of(
        cls,
        base: Base,
        path: str | Path,
        p: float = 0.9,
        seed: int = 0,
        values: Values = "fp16",
        rescale: bool = True,
        choice: Choice = "even",
    ) -> Delta:
        """The difference of a task folder to its base, dropped, rescaled and rounded to what a file holds.

        Raises:
            InputError: a folder of another base, or as `drop_all`.
        """
        loaded = base.open_task(path)
        dropped = drop_all(changes_of(loaded.model, base), p, seed, rescale=rescale, choice=choice)
        changed = {name: change for name, change in dropped.items() if change.any()}
        shifts = {name: _shift(change) if values == "fp16" else 0 for name, change in changed.items()}
        return cls(
            base=base.fingerprint,
            changes={name: rounded(change, shifts[name], values) for name, change in changed.items()},
            shifts=shifts,
            head=head_of(loaded.model),
            task=loaded.model.task,
            max_len=loaded.max_len,
            p=p,
            seed=seed,
            values=values,
            choice=choice,
        )

    def model(self, base: Base) -> TaskModel:
        """The base with the changes added, and the head.

        Raises:
            InputError: another base than that of the difference.
        """
        if base.fingerprint != self.base:
            raise InputError(
                f"{base.folder}: its weights have the fingerprint {base.fingerprint}, the difference is to a base with "
                f"{self.base}: give the model that the fine-tuning began with"
            )
        return task_model(base, add(base.state, self.changes), self.head, self.task)


def head_of(model: TaskModel) -> dict[str, Tensor]:
    """Every tensor beside the encoder."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}


def add(state: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with what is added to some of them."""
    return {name: tensor + changes[name] if name in changes else tensor for name, tensor in state.items()}


def task_model(base: Base, state: Mapping[str, Tensor], head: Mapping[str, Tensor], task: Task) -> TaskModel:
    """A task's model with copies of an encoder's tensors and of a head's."""
    encoder = empty_model(base.config, with_head=False)
    assert isinstance(encoder, Encoder)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn only to be replaced
        model = TaskModel(encoder, task)
    whole = {**{f"encoder.{name}": tensor for name, tensor in state.items()}, **head}
    model.load_state_dict({name: tensor.clone() for name, tensor in whole.items()}, assign=True)
    return model


def rounded(change: Tensor, shift: int, values: Values) -> Tensor:
    """The change as a file gives it back, to the sign of its zeros."""
    return (change if values == "fp32" else from_half(to_half(change, shift), shift)) + 0.0


def _shift(change: Tensor) -> int:
    """The power of two that brings the largest value just below the largest of fp16, so that small ones keep digits."""
    return min(100, 15 - math.frexp(float(change.abs().max()))[1])


def to_half(change: Tensor, shift: int) -> Tensor:
    """fp16 of the change times a power of two."""
    return (change * 2.0**shift).half()


def from_half(half: Tensor, shift: int) -> Tensor:
    """The inverse of `to_half`, exactly."""
    return half.float() * 2.0**-shift
