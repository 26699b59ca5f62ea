"""int8: what is rounded, which parts return to fp32, and when it is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed
from terrazzo.runtime import OpenVinoRuntime, TorchRuntime, to_openvino
from terrazzo.runtime.agreement import Agreement, Judge
from terrazzo.runtime.machine import Machine
from terrazzo.runtime.quantise import Target, control, fewest, import_nncf, parts_of, quantise, reverted, simulate

CONFIG = bert("tiny", 60, width=32, depth=1, num_heads=2, mlp_width=64, max_len=32, init_std=0.3)
PARTS = {"attention.qkv", "attention.scores", "attention.out", "mlp.up", "mlp.down"}


def documents(count: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 60, draw.integers(4, 30)) for _ in range(count)]


def apart(count: int, seed: int) -> list[Packed]:
    return [Packed.from_sequences([document]) for document in documents(count, seed)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.fixture(scope="module")
def simulated(encoder):
    return simulate(to_openvino(encoder), CONFIG, apart(16, 0), half_range=False)


@pytest.fixture(scope="module")
def judge(encoder) -> Judge:
    return Judge(TorchRuntime(encoder), [Packed.from_sequences(documents(12, 1))])


def spoiled(simulated, *parts: str):
    """A copy in which the rounded weights of some parts are all zero."""
    import openvino

    copy = simulated.clone()
    for part in parts:
        weights = [reader for reader, source in parts_of(copy)[part] if source.get_node().get_type_name() == "Constant"]
        for reader in weights:
            rounding = reader.get_source_output().get_node()
            for port in (3, 4):
                zeros = np.zeros(rounding.input_value(port).get_shape(), np.float32)
                rounding.input(port).replace_source_output(openvino.opset13.constant(zeros).output(0))
    return copy


def test_every_part_is_rounded_and_reverting_all_gives_fp32(simulated, encoder) -> None:
    names = {f"blocks.0.{part}" for part in PARTS} | {"embeddings.tokens"}
    assert set(parts_of(simulated)) == names
    (batch,) = apart(1, 3)
    whole = OpenVinoRuntime(reverted(simulated, names), CONFIG, "int8", streams=1)(batch)
    torch.testing.assert_close(whole, encoder(batch), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(OpenVinoRuntime(simulated.clone(), CONFIG, "int8", streams=1)(batch), whole, atol=1e-3)


def test_a_part_that_is_made_bad_on_purpose_returns_to_fp32(simulated, judge) -> None:
    said: list[str] = []
    bad = spoiled(simulated, "blocks.0.mlp.down")
    found = control(bad, CONFIG, judge, judge, Target(cosine=0.995), log=said.append)
    assert found.reverted == ("blocks.0.mlp.down",)
    assert found.frontier[0].mean < 0.995 <= found.agreement.mean
    assert "looking for the parts that cost most" in said[0]


def test_two_bad_parts_return_both(simulated, judge) -> None:
    bad = spoiled(simulated, "blocks.0.mlp.down", "blocks.0.mlp.up")
    found = control(bad, CONFIG, judge, judge, Target(cosine=0.995), log=lambda line: None)
    assert set(found.reverted) == {"blocks.0.mlp.down", "blocks.0.mlp.up"}


def test_a_target_out_of_reach_is_refused_with_what_was_measured(simulated, judge) -> None:
    with pytest.raises(InputError, match=r"0 of 6 parts in fp32: cosine.*3 of 6 parts.*--precision bf16 or fp32"):
        control(simulated, CONFIG, judge, judge, Target(cosine=1.0), log=lambda line: None)


def test_answers_count_beside_the_cosine() -> None:
    agreement = Agreement(mean=0.999, worst=0.99, documents=200, answers=0.98)
    assert not agreement.reaches(0.995, 0.99)
    assert agreement.reaches(0.995, 0.98) and not agreement.reaches(0.9995, 0.98)
    few = Agreement(mean=0.999, worst=0.99, documents=20, answers=0.95)
    assert few.reaches(0.995, 0.99), "one answer of twenty is no evidence"
    windows = Agreement(mean=0.999, worst=0.99, documents=60, answers=0.95, asked=20)
    assert windows.reaches(0.995, 0.99), "of twenty questions that are read in sixty parts, too"


def test_answers_are_counted_where_they_can_be() -> None:
    said = str(Agreement(mean=0.999, worst=0.99, documents=50, answers=41 / 42, asked=42))
    assert said.endswith("over 50 texts; 41 of 42 answers equal")
    tags = Agreement(mean=0.999, worst=0.99, documents=3, answers=0.9, asked=3)
    assert str(tags).endswith("; 90.0% of 3 answers equal")


def test_weights_keep_to_7_bits_without_vnni(encoder, judge) -> None:
    ranges = {}
    for name, instructions in (("old", ("avx2", "avx512f")), ("new", ("avx2", "avx512_vnni"))):
        found = quantise(
            to_openvino(encoder),
            CONFIG,
            apart(8, 0),
            judge,
            judge,
            machine=Machine(cpu=name, instructions=instructions, cores=1),
            target=Target(cosine=0.9),
        )
        weights = [
            node.get_data()
            for node in found.model.get_ops()
            if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "i8"
        ]
        products = [values for values in weights if values.shape[0] != CONFIG.padded_vocab_size]
        ranges[name] = (found.half_range, len(products) > 0, max(int(abs(v.astype(int)).max()) for v in products))
    assert ranges == {"old": (True, True, 64), "new": (False, True, 127)}


@pytest.mark.parametrize("needed", range(12))
def test_the_fewest_that_suffice(needed) -> None:
    tried: list[int] = []

    def reaches(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(reaches, 10) == (needed if needed <= 10 else None)
    assert max(tried) <= 10


def test_nncf_reports_nothing_to_its_maker() -> None:
    import sys

    import_nncf()
    assert sys.modules["openvino_telemetry"] is None
