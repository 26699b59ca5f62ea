"""Latency tables, whose parts are measured once on a machine and remembered, and compared with encoders as a whole.

Attention with n heads is timed in encoders of few layers beside an MLP of half its width, an MLP with w inner units
beside half of the heads; what layers of nothing still cost (embeddings, norms, a head) is timed at full depth. These
parts are fitted to some whole encoders, which are timed whenever a table is opened: from one hour to the next a large
encoder and a small one do not get slower by the same share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from terrazzo.compression.latency import Conditions, Curve, LatencyTable, shape_of
from terrazzo.compression.latency_fit import fitted, whole_encoders
from terrazzo.compression.probes import Opener, opener_of
from terrazzo.compression.sites import Kind, sites
from terrazzo.compression.timing import Clock, Timing, time_calls
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.packed import Packed
from terrazzo.provenance import versions
from terrazzo.runtime import Runtime
from terrazzo.runtime.choice import PACKAGES, memory_file
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.memory import Memory

_MEMORY = Memory(kind=LatencyTable, name="tables", format="terrazzo-latency-3", measured="latencies")
#: Sizes that are timed, as shares of all heads or units; the sizes between them are interpolated.
SHARES: dict[Kind, tuple[float, ...]] = {
    "heads": (0, 1 / 12, 1 / 4, 1 / 2, 3 / 4, 1),
    "units": (0, 1 / 48, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1),
}
#: Layers of the encoders that one size is timed in.
_DEPTH = 2
#: Tokens that these encoders know: the table is part of what all have in common.
_VOCABULARY = 128
_REMAINDER = "the remainder"
#: Runs a batch on a runtime, down to what is timed.
Forward = Callable[[Runtime, Packed], object]
#: Of each kind of site, the sizes that are timed, ascending.
Sizes = Mapping[Kind, Sequence[int]]


def latency_table(
    shape: EncoderConfig,
    conditions: Conditions,
    *,
    sizes: Sizes | None = None,
    forward: Forward | None = None,
    timing: Timing | None = None,
    machine: Machine | None = None,
    memory: Path | None = None,
    opener: Opener | None = None,
    clock: Clock | None = None,
) -> LatencyTable:
    """The latency table of a shape: its parts measured once on a machine, then remembered, and fitted to whole encoders
    that are timed now.

    Args:
        sizes: that are timed beside nothing and all; None takes `SHARES`.
        forward: what is timed of a runtime and a batch, named by `conditions.task`; None is the encoder alone.
        memory: file of tables; None is the user's own, beside the remembered runtimes.
        opener, clock: None opens graphs with random weights and reads this process's clock.

    Raises:
        TooNoisy: times measured twice differ too much.
        InputError: the runtime lacks a package or does not have the precision.
    """
    machine, memory = machine or this_machine(), memory or memory_file().with_name("latency.json")
    shape, timed = shape_of(shape), _sizes(shape_of(shape), sizes)
    key = _key(machine, shape, conditions, timed)
    opener, clock = opener or opener_of(conditions, machine), clock or clock_of(conditions)
    known = _MEMORY.read(memory).get(key)
    groups = _groups(shape, conditions.selects) if known is None else []
    whole = {f"whole encoder {number}": config for number, config in enumerate([shape, *whole_encoders(shape)])}
    full = {_REMAINDER: _filled(shape, shape.depth), **whole}
    calls = {name: _call(opener, config, conditions, forward) for name, config in full.items()}
    for group in groups:
        for name, probe in group.probes(shape, timed).items():
            calls[name] = _call(opener, probe, conditions, forward if group.last else None)
    with with_threads(conditions.threads):
        times = time_calls(calls, clock, timing or Timing())
    if known is None:
        known = LatencyTable(
            shape=shape,
            conditions=conditions,
            remainder_ms=times.ms[_REMAINDER],
            curves=tuple(curve for group in groups for curve in group.curves(shape, timed, times.ms)),
            spread=times.spread,
            machine=machine.key,
            packages=versions(PACKAGES),
        )
        _MEMORY.add(memory, key, known)
    parts = replace(known, remainder_ms=times.ms[_REMAINDER], spread=max(known.spread, times.spread))
    return fitted(parts, list(whole.values()), [times.ms[name] for name in whole])


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Milliseconds of one encoder, by its table and as measured."""

    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted_ms / self.measured_ms - 1


def compare(
    table: LatencyTable,
    configs: Sequence[EncoderConfig],
    *,
    forward: Forward | None = None,
    timing: Timing | None = None,
    opener: Opener | None = None,
    clock: Clock | None = None,
) -> list[Compared]:
    """Encoders with random weights, predicted by a table of this machine and measured as a whole.

    Raises:
        TooNoisy: times measured twice differ too much.
        InputError: a table of another machine, or an encoder of another shape.
    """
    machine, conditions = this_machine(), table.conditions
    if opener is None and table.machine != machine.key:
        raise InputError(f"a latency table of {table.machine}, this machine is {machine.key}: measure one here")
    predicted = [table.predict(config) for config in configs]
    opener, clock = opener or opener_of(conditions, machine), clock or clock_of(conditions)
    calls = {f"encoder {number}": _call(opener, config, conditions, forward) for number, config in enumerate(configs)}
    with with_threads(conditions.threads):
        measured = time_calls(calls, clock, timing).ms.values()
    return [Compared(predicted_ms=p, measured_ms=m) for p, m in zip(predicted, measured, strict=True)]


def clock_of(conditions: Conditions) -> Clock:
    """Seconds as the conditions count them: of the process, or of the day."""
    return time.process_time if conditions.clock == "cpu" else time.perf_counter


def _call(
    opener: Opener, config: EncoderConfig, conditions: Conditions, forward: Forward | None
) -> Callable[[], object]:
    """A call that runs a batch of the conditions' lengths through an encoder of `config`."""
    draw = np.random.default_rng(0)
    batch = Packed.from_sequences([draw.integers(0, config.vocab_size, length) for length in conditions.lengths])
    runtime = opener(config)
    return (lambda: runtime(batch)) if forward is None else (lambda: forward(runtime, batch))


@dataclass(frozen=True)
class _Group:
    """Layers that cost alike: of one window, or the last one where it runs for some tokens alone."""

    window: int | None
    last: bool
    layers: tuple[int, ...]

    def probes(self, shape: EncoderConfig, sizes: Sizes) -> dict[str, EncoderConfig]:
        """By their names, encoders of such layers: every size of one kind beside half of the other, and nothing."""
        vocabulary = min(_VOCABULARY, shape.vocab_size)
        few = shape.replace(vocab_size=vocabulary, window=self.window, global_every=1, skip_first_norm=False)
        heads, units = _half(sizes["heads"]), _half(sizes["units"])
        pairs = [(size, units) for size in sizes["heads"]] + [(heads, size) for size in sizes["units"]] + [(0, 0)]
        return {self._name(*pair): _filled(few, self._depth(shape), *pair) for pair in pairs}

    def curves(self, shape: EncoderConfig, sizes: Sizes, ms: Mapping[str, float]) -> list[Curve]:
        """What each size adds for each layer.

        Both kinds together can cost more than each of them alone (int8 is quantised between them); each takes half of
        that, so that a layer of half of both is predicted as it was timed.
        """
        heads, units = _half(sizes["heads"]), _half(sizes["units"])

        def spent(one: int, other: int) -> float:
            return ms[self._name(one, other)] / self._depth(shape)

        both = spent(heads, units) - spent(heads, 0) - spent(0, units) + spent(0, 0)
        added: dict[Kind, list[float]] = {
            "heads": [spent(size, units) - spent(0, units) - both / 2 for size in sizes["heads"]],
            "units": [spent(heads, size) - spent(heads, 0) - both / 2 for size in sizes["units"]],
        }
        curves = []
        for kind, some in added.items():
            ms_S = (0.0, *(max(0.0, one) for one in some[1:]))
            curves.append(Curve(kind=kind, layers=self.layers, sizes=tuple(sizes[kind]), ms=ms_S))
        return curves

    def _depth(self, shape: EncoderConfig) -> int:
        return 1 if self.last else min(_DEPTH, shape.depth)

    def _name(self, heads: int, units: int) -> str:
        return f"{heads} heads and {units} units in layers {', '.join(map(str, self.layers))}"


def _half(sizes: Sequence[int]) -> int:
    """The timed size that is nearest to half of all."""
    return min(sizes[1:], key=lambda size: abs(size - sizes[-1] / 2))


def _groups(shape: EncoderConfig, selects: bool) -> list[_Group]:
    groups: dict[tuple[int | None, bool], list[int]] = {}
    for layer in range(shape.depth):
        groups.setdefault((shape.layer_window(layer), selects and layer == shape.depth - 1), []).append(layer)
    return [_Group(window, last, tuple(layers)) for (window, last), layers in groups.items()]


def _filled(config: EncoderConfig, depth: int, heads: int = 0, units: int = 0) -> EncoderConfig:
    """So many layers, all with so many heads and units."""
    return config.replace(depth=depth, kept_heads=(tuple(range(heads)),) * depth, mlp_widths=(units,) * depth)


def _sizes(shape: EncoderConfig, sizes: Sizes | None) -> dict[Kind, tuple[int, ...]]:
    """The sizes to time, ascending, with nothing and all among them; widths in steps that matrix products like."""
    found: dict[Kind, tuple[int, ...]] = {}
    for site in sites(shape)[:2]:
        most, step = site.size(shape), 32 if site.kind == "units" and site.size(shape) >= 512 else 1
        given = sizes.get(site.kind, ()) if sizes is not None else ()
        given = given or [round(share * most / step) * step for share in SHARES[site.kind]]
        if min(given) < 0 or max(given) > most:
            raise InputError(f"sizes of {site.kind}: {list(given)} go beyond 0 to {most}")
        found[site.kind] = tuple(sorted({0, *given, most}))
    return found


@contextlib.contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """PyTorch's threads while a block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(machine: Machine, shape: EncoderConfig, conditions: Conditions, sizes: Mapping[Kind, Sequence[int]]) -> str:
    what = json.dumps([to_dict(shape), to_dict(conditions), to_dict(sizes), versions(PACKAGES)], sort_keys=True)
    name = f"{conditions.runtime} {conditions.precision}"
    return f"{machine.key} | {name} | {hashlib.sha256(what.encode()).hexdigest()[:16]}"
