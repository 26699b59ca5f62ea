"""Where an encoder can be cut: heads and inner units of its blocks, and the matrices whose entries can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.nn.attention import Attention
from terrazzo.nn.block import Block
from terrazzo.nn.linear import Linear, StackedLinear
from terrazzo.nn.mlp import MLP

Kind = Literal["heads", "units"]


@dataclass(frozen=True, order=True)
class Site:
    """One kind of structure in one block: its attention heads, or the inner units of its MLP.

    A structure is a group of columns of the block's output projection: as many as a head is wide, or one. With the
    columns go the rows of the projection before it that feed them.
    """

    layer: int
    kind: Kind

    @property
    def name(self) -> str:
        """`heads.3`, `units.3`: the site's key in plans and tables."""
        return f"{self.kind}.{self.layer}"

    @property
    def prefix(self) -> str:
        """The module that the structures are in."""
        return f"blocks.{self.layer}.{'attention' if self.kind == 'heads' else 'mlp'}"

    @property
    def weight(self) -> str:
        """The name of the output projection's weight, whose columns are the structures."""
        return f"{self.prefix}.{'out' if self.kind == 'heads' else 'down'}.weight"

    @property
    def before(self) -> str:
        """The prefix of the projection whose rows feed those columns."""
        return f"{self.prefix}.{'qkv' if self.kind == 'heads' else 'up'}"

    @classmethod
    def parse(cls, name: str) -> Site:
        """The site called `name`.

        Raises:
            InputError: the name is not a kind, a dot and a layer.
        """
        kind, _, layer = name.partition(".")
        for known in get_args(Kind):
            if kind == known and layer.isdecimal():
                return cls(int(layer), known)
        raise InputError(f"site {name!r}: write it as heads.LAYER or units.LAYER, e.g. heads.0")

    def size(self, config: EncoderConfig) -> int:
        """Structures that an encoder of this config has here."""
        return len(config.layer_heads(self.layer)) if self.kind == "heads" else config.layer_mlp_width(self.layer)

    def group(self, config: EncoderConfig) -> int:
        """Columns of one structure."""
        return config.head_width if self.kind == "heads" else 1

    def projection(self, encoder: Encoder) -> Linear:
        """The output projection."""
        return self._projections(encoder)[1]

    def producer(self, encoder: Encoder) -> StackedLinear:
        """The projection before it: queries, keys and values, or gate and value."""
        return self._projections(encoder)[0]

    def _projections(self, encoder: Encoder) -> tuple[StackedLinear, Linear]:
        block = encoder.blocks[self.layer]
        assert isinstance(block, Block)
        part: Attention | MLP = block.attention if self.kind == "heads" else block.mlp
        return (part.qkv, part.out) if isinstance(part, Attention) else (part.up, part.down)


def sites(config: EncoderConfig) -> list[Site]:
    """Every site of an encoder, first block first, heads before units."""
    return [Site(layer, kind) for layer in range(config.depth) for kind in get_args(Kind)]


def find_site(name: str, config: EncoderConfig) -> Site:
    """The site called `name` of an encoder.

    Raises:
        InputError: the encoder has no such site.
    """
    known = {site.name: site for site in sites(config)}
    if name not in known:
        raise InputError(f"site {name!r} is not in an encoder of {config.depth} layers: {nearest(name, known)}")
    return known[name]


def matrices(encoder: Encoder) -> dict[str, nn.Parameter]:
    """Every weight matrix of the blocks by its name in the encoder, for methods that work on single entries."""
    modules = encoder.blocks.named_modules(prefix="blocks")
    return {
        f"{name}.weight": module.get_parameter("weight") for name, module in modules if isinstance(module, nn.Linear)
    }


def columns_of(groups: Sequence[int] | Tensor, group: int) -> Tensor:
    """The columns of `groups`, each of `group` neighbouring ones, int64 in the order given."""
    starts = torch.as_tensor(groups, dtype=torch.int64) * group
    return (starts[:, None] + torch.arange(group, device=starts.device)).flatten()


def ladder(size: int, shrink: float = 0.9, floor: float = 0.01) -> tuple[int, ...]:
    """Sizes from `size` down, each about `shrink` times the one before, to `floor` of it, and 0.

    From 256 up they are multiples of 32, below in a matrix of at least 64 multiples of 8: widths that matrix products
    like. `size` itself is there as it is.

    Reference: ZipLM (arXiv 2302.04089), section 3.2: intermediate sizes shrinking by a factor of 0.9.
    """
    assert 0 < shrink < 1, shrink
    sizes, wanted = {size, 0}, size * shrink
    while wanted >= max(1.0, size * floor):
        step = 1 if size < 64 else 8 if wanted < 256 else 32
        sizes.add(min(size, round(wanted / step) * step))
        wanted *= shrink
    return tuple(sorted(sizes, reverse=True))
