"""What every size of every part of an encoder costs in a runtime on this machine, so that times can be added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal

import numpy as np

from terrazzo.compression.sites import Kind, Site, find_site, sites
from terrazzo.config import config, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.runtime import Precision
from terrazzo.runtime.folder import RuntimeName


@config
class Conditions:
    """What a time depends on beside the model and the machine.

    Args:
        lengths: tokens of each document of the batch that is timed.
        threads: that one batch runs on.
        task: a name for what runs behind the encoder, "" for nothing.
        selects: whether that asks for some tokens alone (a document's first), which the last layer then saves by.
    """

    runtime: RuntimeName
    precision: Precision
    lengths: tuple[int, ...]
    threads: int = 1
    task: str = ""
    selects: bool = False

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.threads < 1:
            raise InputError(f"lengths {self.lengths} and threads {self.threads}: one document and one thread at least")

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """CPU time of the process, which other processes do not lengthen; only one thread's is a latency."""
        return "cpu" if self.threads == 1 else "wall"


@config
class Curve:
    """Milliseconds of one kind of site by its size, in each of `layers`."""

    kind: Kind
    layers: tuple[int, ...]
    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, size: int) -> float:
        """Milliseconds at a size, interpolated linearly between those that were timed.

        Below the smallest that was timed a site costs what that one does: that it is there at all.
        """
        return float(np.interp(max(size, min(self.sizes[1:])) if size else 0, self.sizes, self.ms))


@config
class LatencyTable:
    """Milliseconds of a batch, part by part.

    Args:
        shape: the whole encoder; remainder_ms: what is left of it without any heads and units.
        machine: key of the machine; packages: versions there.
        factors: what the parts' times of each kind were multiplied by, so that they add up to those of whole encoders;
            present_ms: what was added to each for being there.
        spread: the largest share by which a time, measured twice, differed.
    """

    shape: EncoderConfig
    conditions: Conditions
    remainder_ms: float
    curves: tuple[Curve, ...]
    factors: dict[Kind, float] = field(default_factory=lambda: {"heads": 1.0, "units": 1.0})
    present_ms: float = 0.0
    spread: float
    machine: str
    packages: dict[str, str]

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the whole encoder."""
        return self.predict(self.shape)

    def price(self, site: Site, size: int) -> float:
        """Milliseconds of a site that keeps so many heads or units.

        Raises:
            InputError: more than there are.
        """
        if not 0 <= size <= site.size(self.shape):
            raise InputError(f"{site.name} of {size}: it has {site.size(self.shape)} in this latency table")
        (curve,) = (curve for curve in self.curves if curve.kind == site.kind and site.layer in curve.layers)
        return curve.at(size)

    def prices(self, database: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, list[float]]:
        """Milliseconds of every level of sites by their names, as the solver takes them."""
        found = {name: find_site(name, self.shape) for name in database}
        return {name: [self.price(found[name], size) for size, _ in levels] for name, levels in database.items()}

    def predict(self, config: EncoderConfig) -> float:
        """Milliseconds of an encoder of this shape with some heads and units removed.

        Raises:
            InputError: an encoder of another shape.
        """
        if shape_of(config) != self.shape:
            raise InputError(f"a latency table for {_differing(self.shape, shape_of(config))}")
        return self.remainder_ms + sum(self.price(site, site.size(config)) for site in sites(config))

    def speedup(self, config: EncoderConfig) -> float:
        """How many times as fast as the whole encoder, in the same runtime."""
        return self.dense_ms / self.predict(config)

    def budget(self, ms: float) -> float:
        """What the sites may cost together so that a batch takes `ms`; below 0 where the remainder alone takes more."""
        return ms - self.remainder_ms


def shape_of(config: EncoderConfig) -> EncoderConfig:
    """The whole encoder, without what does not change how fast it runs."""
    return config.replace(kept_heads=None, mlp_widths=None, dropout=0.0, attention_dropout=0.0, init="normal")


def _differing(one: EncoderConfig, other: EncoderConfig) -> str:
    first, second = to_dict(one), to_dict(other)
    said = [f"{name} {first[name]}, not {second[name]}" for name in first if first[name] != second[name]]
    return ", ".join(said)
