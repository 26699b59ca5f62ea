"""Times add up from parts that were timed alone; nothing here depends on how fast this machine is."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from terrazzo.compression.latency import Conditions, LatencyTable
from terrazzo.compression.latency_fit import WHOLE
from terrazzo.compression.latency_measure import clock_of, compare, latency_table
from terrazzo.compression.probes import opener_of
from terrazzo.compression.sites import Site
from terrazzo.compression.timing import Timing, TooNoisy, time_calls
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import bert, modernbert
from terrazzo.packed import Packed
from terrazzo.runtime.machine import Machine, this_machine

SHAPE = bert("tiny", 500, max_len=64).replace(depth=5, num_heads=8)
MACHINE = Machine(cpu="one", instructions=("avx2",), cores=2)
BATCH = Conditions(runtime="openvino", precision="fp32", lengths=(4, 6))
SELECTING = Conditions(runtime="openvino", precision="fp32", lengths=(4, 6), task="first", selects=True)


def first_tokens(runtime, batch):
    return runtime(batch, batch.cu_seqlens[:-1])


class Clock:
    """Time that passes only while a `Simulated` runtime runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Simulated:
    """Opens runtimes that take milliseconds by a rule that is not linear in width; three calls in ten meet noise."""

    def __init__(self, noise=0.0, both=0.0, deep=0.0, there=0.0, slow=1.0) -> None:
        self.slow, self.both, self.deep, self.there, self.draw = slow, both, deep, there, np.random.default_rng(0)
        self.clock, self.opened, self.noise = Clock(), [], noise

    def milliseconds(self, config, tokens, wanted):
        total = 0.5 + 0.001 * tokens * config.depth + 2e-4 * config.vocab_size
        for layer in range(config.depth):
            after = wanted if layer == config.depth - 1 else tokens
            deeper = 1 + self.deep * config.depth
            near = deeper if config.layer_window(layer) is None else 0.25 * deeper
            width = config.layer_mlp_width(layer)
            total += near * 0.02 * tokens * len(config.layer_heads(layer)) ** 1.1
            total += self.both if width and config.layer_heads(layer) else 0.0
            total += self.there * (bool(width) + bool(config.layer_heads(layer))) if config.depth > 2 else 0.0
            total += deeper * 1e-4 * after * (width + 0.5 * 32 * -(-width // 32))
        return total

    def __call__(self, config):
        self.opened.append(config)

        def run(batch, select_M=None):
            wanted = batch.num_tokens if select_M is None else len(select_M)
            late = 1 + self.noise * (self.draw.random() < 0.3)
            self.clock.now += 1e-3 * self.slow * late * self.milliseconds(config, batch.num_tokens, wanted)

        return run


def table_of(simulated, tmp_path, shape=SHAPE, conditions=BATCH, machine=MACHINE, **settings):
    settings = {"memory": tmp_path / "latency.json", "timing": Timing(seconds=0)} | settings
    return latency_table(shape, conditions, machine=machine, opener=simulated, clock=simulated.clock, **settings)


def alike(one, other):
    """Whether two tables predict the same, as far as sums of times have digits."""
    ms = [(sum(curve.ms) + table.remainder_ms, table.dense_ms) for table in (one, other) for curve in table.curves]
    return ms[: len(one.curves)] == [pytest.approx(two, rel=1e-6) for two in ms[len(one.curves) :]]


def uneven(shape, draw):
    heads = tuple(tuple(range(draw.integers(0, shape.num_heads + 1))) for _ in range(shape.depth))
    return shape.replace(kept_heads=heads, mlp_widths=tuple(draw.integers(0, 17, shape.depth) * 32))


@pytest.mark.parametrize("conditions", [BATCH, SELECTING])
@pytest.mark.parametrize("shape", [SHAPE, modernbert("tiny", 500).replace(depth=5, mlp_width=512)])
def test_times_of_uneven_encoders_add_up(tmp_path, shape, conditions) -> None:
    simulated, draw = Simulated(), np.random.default_rng(0)
    forward = first_tokens if conditions.selects else None
    every = {"heads": range(shape.num_heads + 1), "units": range(0, 513, 32)}
    table = table_of(simulated, tmp_path, shape, conditions, forward=forward, sizes=every)
    tokens, wanted = 10, 2 if conditions.selects else 10
    dense = simulated.milliseconds(shape, tokens, wanted)
    assert table.dense_ms == pytest.approx(dense, rel=1e-9)
    for _ in range(5):
        config = uneven(shape, draw)
        truth = simulated.milliseconds(config, tokens, wanted)
        assert table.predict(config) == pytest.approx(truth, rel=1e-9)
        assert table.speedup(config) == pytest.approx(dense / truth, rel=1e-9)


def test_sizes_between_are_interpolated_to_a_few_percent(tmp_path) -> None:
    simulated = Simulated()
    coarse = table_of(simulated, tmp_path)
    assert len(simulated.opened) < 24
    config = SHAPE.replace(kept_heads=((0, 1, 2),) * 5, mlp_widths=(40, 100, 200, 300, 500))
    assert coarse.predict(config) == pytest.approx(simulated.milliseconds(config, 10, 10), rel=0.03)
    assert coarse.price(Site(0, "units"), 0) == 0


def test_what_both_parts_cost_together_is_in_the_table(tmp_path) -> None:
    simulated = Simulated(both=0.3)
    table = table_of(simulated, tmp_path, sizes={"heads": range(9), "units": range(0, 513, 32)})
    for heads, units in ((8, 512), (4, 256), (1, 32)):
        config = SHAPE.replace(kept_heads=(tuple(range(heads)),) * 5, mlp_widths=(units,) * 5)
        assert table.predict(config) == pytest.approx(simulated.milliseconds(config, 10, 10), rel=0.05)


def test_parts_that_cost_more_among_many_are_fitted_to_whole_encoders(tmp_path) -> None:
    """Both the factor of many layers and what any part that is there costs; neither shows in two layers."""
    simulated, draw = Simulated(deep=0.05, there=0.2), np.random.default_rng(0)
    table = table_of(simulated, tmp_path, sizes={"heads": range(9), "units": range(0, 513, 32)})
    assert table.factors["heads"] == pytest.approx(1.25 / 1.1, rel=0.01)
    assert table.factors["units"] == pytest.approx(1.25 / 1.1, rel=0.01)
    assert table.present_ms == pytest.approx(0.2, rel=0.05)
    for config in (SHAPE, *(uneven(SHAPE, draw) for _ in range(5))):
        assert table.predict(config) == pytest.approx(simulated.milliseconds(config, 10, 10), rel=0.01)
    assert table.price(Site(0, "heads"), 0) == 0


def test_being_there_never_costs_less_than_nothing(tmp_path) -> None:
    table = table_of(Simulated(there=-0.1), tmp_path)
    assert table.present_ms == 0 and min(min(curve.ms) for curve in table.curves) >= 0


def test_predictions_are_compared_with_whole_encoders(tmp_path) -> None:
    simulated = Simulated()
    table, config = table_of(simulated, tmp_path), uneven(SHAPE, np.random.default_rng(0))
    dense, cut = compare(table, [SHAPE, config], opener=simulated, clock=simulated.clock, timing=Timing(seconds=0))
    assert abs(dense.error) < 0.01 and abs(cut.error) < 0.05
    assert cut.measured_ms == pytest.approx(simulated.milliseconds(config, 10, 10), rel=1e-9)
    with pytest.raises(InputError, match="a latency table of one"):
        compare(table, [config])


def test_prices_and_budget_are_those_of_the_parts(tmp_path) -> None:
    table = table_of(Simulated(), tmp_path)
    prices = table.prices({"heads.1": [(8, 0.0), (2, 0.5)], "units.4": [(512, 0.0)]})
    assert prices == {
        "heads.1": [table.price(Site(1, "heads"), 8), table.price(Site(1, "heads"), 2)],
        "units.4": [table.price(Site(4, "units"), 512)],
    }
    assert table.budget(table.dense_ms) == pytest.approx(sum(table.price(s, s.size(SHAPE)) for s in all_sites()))


def all_sites():
    return [Site(layer, kind) for layer in range(SHAPE.depth) for kind in ("heads", "units")]


def test_another_encoder_is_refused_by_what_differs(tmp_path) -> None:
    table = table_of(Simulated(), tmp_path)
    with pytest.raises(InputError, match="mlp_width 512, not 256"):
        table.predict(SHAPE.replace(mlp_width=256))
    with pytest.raises(InputError, match="heads.0 of 9"):
        table.price(Site(0, "heads"), 9)
    assert table.predict(SHAPE.replace(dropout=0.3)) == table.dense_ms


def test_parts_are_remembered_until_anything_differs(tmp_path) -> None:
    simulated, whole = Simulated(), WHOLE + 2
    first = table_of(simulated, tmp_path)
    assert len(simulated.opened) > 2 * whole
    opened = len(simulated.opened)
    assert alike(table_of(simulated, tmp_path), first) and len(simulated.opened) == opened + whole
    assert all(config.depth == SHAPE.depth for config in simulated.opened[opened:]), "no parts, only whole encoders"
    assert from_dict(LatencyTable, json.loads(json.dumps(to_dict(first)))) == first
    longer = Conditions(runtime="openvino", precision="fp32", lengths=(4, 7))
    others = [
        {"conditions": longer},
        {"shape": SHAPE.replace(mlp_width=256)},
        {"machine": Machine(cpu="two", instructions=("avx2",), cores=2)},
        {"sizes": {"heads": [4]}},
    ]
    for other in others:
        opened = len(simulated.opened)
        table_of(simulated, tmp_path, **other)
        assert len(simulated.opened) > opened + whole, other
    opened = len(simulated.opened)
    assert alike(table_of(simulated, tmp_path), first) and len(simulated.opened) == opened + whole


def test_remembered_parts_are_fitted_to_what_whole_encoders_take_now(tmp_path) -> None:
    """From one hour to the next everything takes 5 % longer, and those of deep encoders a quarter more than that."""
    table_of(Simulated(), tmp_path)
    slower, draw = Simulated(deep=0.05, slow=1.05), np.random.default_rng(1)
    table = table_of(slower, tmp_path)
    for config in [SHAPE, *(uneven(SHAPE, draw) for _ in range(5))]:
        truth = slower.slow * slower.milliseconds(config, 10, 10)
        assert table.predict(config) == pytest.approx(truth, rel=0.03)


def test_a_damaged_memory_is_measured_again(tmp_path) -> None:
    first, again = table_of(Simulated(), tmp_path), Simulated()
    (tmp_path / "latency.json").write_text('{"format": "terrazzo-latency-3", "tables": {"a": 3}}')
    with pytest.warns(UserWarning, match="damaged"):
        assert alike(table_of(again, tmp_path), first)
    assert len(again.opened) > WHOLE + 2


def test_noise_that_the_minimum_leaves_out_changes_nothing(tmp_path) -> None:
    quiet, noisy = table_of(Simulated(), tmp_path / "a"), table_of(Simulated(noise=4.0), tmp_path / "b")
    assert noisy.dense_ms == pytest.approx(quiet.dense_ms, rel=0.02)


def test_one_thread_is_timed_by_the_cpu_and_several_by_the_clock_on_the_wall() -> None:
    several = Conditions(runtime="openvino", precision="fp32", lengths=(4, 6), threads=2)
    assert (clock_of(BATCH), clock_of(several)) == (time.process_time, time.perf_counter)


class Falling:
    """A call that takes less time every time, as on a machine whose other work ends."""

    def __init__(self, clock, rate) -> None:
        self.clock, self.rate, self.calls = clock, rate, 0

    def __call__(self):
        self.calls += 1
        self.clock.now += self.rate**self.calls


def test_what_never_settles_is_refused_by_its_name() -> None:
    clock = Clock()
    calls = {"steady": Falling(clock, 1.0), "restless": Falling(clock, 0.9)}
    with pytest.raises(TooNoisy, match="too noisy: restless, measured twice in 20 rounds, differs by 11.1%") as error:
        time_calls(calls, clock, Timing(seconds=0, most_rounds=20))
    assert error.value.what == "restless" and error.value.spread == pytest.approx(1 / 9)
    assert calls["steady"].calls == calls["restless"].calls, "interleaved"


def test_short_calls_are_repeated_and_rounds_end_when_halves_agree() -> None:
    clock = Clock()
    call = Falling(clock, 1.0)
    times = time_calls({"one": call}, clock, Timing(seconds=3.5))
    assert times.ms == {"one": 1000.0} and times.rounds == 6 and call.calls == 3 + 6 * 4


def test_the_median_sees_what_the_minimum_leaves_out() -> None:
    clock = Clock()
    spent = iter([1.0] * 3 + [1.0, 1.0, 3.0, 3.0, 3.0, 3.0])  # three to warm up, then six rounds

    def call():
        clock.now += next(spent)

    assert time_calls({"one": call}, clock, Timing(seconds=0, statistic="median")).ms == {"one": 3000.0}


@pytest.mark.parametrize("runtime", ["torch", "openvino", "onnx"])
def test_probes_of_every_runtime_run_without_any_heads_or_units(runtime) -> None:
    conditions = Conditions(runtime=runtime, precision="fp32", lengths=(4, 6))
    opener = opener_of(conditions, this_machine())
    shape = bert("tiny", 60, max_len=8).replace(width=16, num_heads=2, mlp_width=32, depth=1)
    for heads, units in ((0, 0), (1, 8)):
        runtime = opener(shape.replace(kept_heads=(tuple(range(heads)),), mlp_widths=(units,)))
        batch = Packed.from_sequences([[1, 2, 3], [4, 5]])
        assert runtime(batch).shape == (5, 16)
        torch.testing.assert_close(runtime(batch, torch.tensor([0, 3])), runtime(batch)[[0, 3]])


def test_int8_probes_run_in_int8() -> None:
    opener = opener_of(Conditions(runtime="openvino", precision="int8", lengths=(4, 6)), this_machine())
    runtime = opener(bert("tiny", 60, max_len=8).replace(width=16, num_heads=2, mlp_width=32, depth=1))
    kinds = {node.get_rt_info()["runtimePrecision"] for node in runtime.compiled.get_runtime_model().get_ops()}
    assert kinds & {"i8", "u8"}


def test_a_precision_that_a_runtime_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="onnx has no int8"):
        opener_of(Conditions(runtime="onnx", precision="int8", lengths=(4,)), MACHINE)
