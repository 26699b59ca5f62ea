from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes.inference_survey import techniques
from recipes.inference_survey.measure import Row, measure
from recipes.inference_survey.recipe import equal_macs_spread, wikipedia
from recipes.inference_survey.table import table
from recipes.inference_survey.techniques import MISSING, TECHNIQUES, Made, PaddedTorch, Technique
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.nn.config import bert
from terrazzo.packed import Packed
from terrazzo.runtime import PaddedEncoder, TorchRuntime
from terrazzo.runtime.agreement import Agreement, Judge
from terrazzo.runtime.graph import GraphEncoder, graph_inputs
from terrazzo.runtime.machine import Machine
from terrazzo.runtime.padded import padded_inputs

CONFIG = replace(bert("tiny", 64), max_len=32)
DOCUMENTS = [np.arange(length) % 64 for length in (3, 17, 9, 17, 5)]


@pytest.fixture
def encoder():
    return Encoder(CONFIG).eval()


def row_of(name, rate, macs=1e6):
    own = Technique(name=name, what=f"what {name} is", family="quantization", make=None)
    made = Made(runtime=None, files=(), macs=None)
    agreement = Agreement(mean=0.9991, worst=0.99, documents=2)
    return Row(own, made, texts=100, macs=macs, agreement=agreement, batch_seconds=[100 / rate], single_seconds=[0.005])


@pytest.mark.parametrize("fields", [{}, {"gated": True}, {"kept_heads": ((0,), (1,)), "mlp_widths": (8, 24)}])
def test_multiply_adds_are_those_that_run(fields):
    config = replace(CONFIG, **fields)
    encoder, batch = Encoder(config).eval(), Packed.from_sequences(DOCUMENTS)
    lengths = np.asarray(batch.lengths)

    def counted(module, inputs):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            module(**{name: torch.from_numpy(own) for name, own in inputs.items() if name != "rows"})
        return counter.get_total_flops() / 2

    assert techniques.padded_macs(config, lengths) == counted(PaddedEncoder(encoder), padded_inputs(batch, config))
    assert techniques.graph_macs(config, lengths) == counted(GraphEncoder(encoder), graph_inputs(batch, config))
    even = np.full(4, 8)
    assert techniques.packed_macs(config, even) == techniques.graph_macs(config, even)
    assert techniques.packed_macs(config, lengths) < techniques.graph_macs(config, lengths)


def test_the_baseline_computes_what_packed_execution_does(encoder):
    batch = Packed.from_sequences(DOCUMENTS)
    torch.testing.assert_close(PaddedTorch(encoder)(batch), TorchRuntime(encoder)(batch), rtol=0, atol=1e-5)


def test_techniques_take_turns_on_the_same_texts(encoder):
    calls = []

    class Noting(TorchRuntime):
        def __init__(self, name):
            super().__init__(encoder, batch_tokens=24, streams=1)
            self.label = name

        def __call__(self, batch, select_M=None):
            calls.append((self.label, batch.lengths))
            return super().__call__(batch)

    made = {
        Technique(name=name, what=name, family=None, make=None, ordered=name == "sorted"): Made(
            runtime=Noting(name), files=(), macs=lambda lengths: float(lengths.sum())
        )
        for name in ("as they come", "sorted")
    }
    judge = Judge(TorchRuntime(encoder), [Packed.from_sequences(DOCUMENTS)])
    calls.clear()
    rows = measure(made, DOCUMENTS, singles=2, rounds=2, judge=judge, log=lambda line: None)
    judging, plain, alone = calls[:2], calls[2:3], calls[3:5]
    assert [name for name, _ in judging] == ["as they come", "sorted"]
    assert plain == [("as they come", (3, 17, 9, 17, 5))]
    assert alone == [("as they come", (3,)), ("as they come", (17,))]
    batches = [lengths for name, lengths in calls[5:8] if name == "sorted"]
    assert [sum(lengths) <= 24 for lengths in batches] == [True] * 3 and sum(map(sum, batches)) == 51
    assert [len(row.batch_seconds) for row in rows] == [2, 2]
    assert rows[0].macs == rows[1].macs == 51 / 5
    assert rows[0].agreement.mean == pytest.approx(1)


def test_every_family_has_techniques_or_says_that_it_has_none():
    covered = techniques.families(TECHNIQUES)
    assert sorted([*covered, *MISSING]) == sorted(get_args(techniques.Family))
    assert TECHNIQUES[0].family is None, "the baseline comes first"


def test_int8_and_fp32_come_from_the_same_weights(encoder, tmp_path):
    setting = [Packed.from_sequences([own]) for own in DOCUMENTS]
    judge = Judge(TorchRuntime(encoder), setting)
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    place = techniques.Workplace(
        encoder=encoder, weights=tmp_path / "model.safetensors", folder=tmp_path, setting=setting, judge=judge
    )
    by_name = {own.name: own.make(place) for own in TECHNIQUES if own.name in ("packed_bf16", "onnx", "onnx_int8")}
    assert by_name["packed_bf16"].bytes == 4
    assert by_name["onnx_int8"].bytes < 0.75 * by_name["onnx"].bytes
    for made in by_name.values():
        assert judge(made.runtime).mean > 0.99
    assert judge(by_name["onnx"].runtime).worst > judge(by_name["onnx_int8"].runtime).worst


def test_the_table_has_a_line_for_what_is_missing():
    rows = [row_of("base", 50), row_of("fast", 100)]
    lines = table(rows, {row_of("half", 1).technique: "not run: no half"}, tokens=65.4).splitlines()
    assert lines[2] == "| quantization | what base is | 0.0 | 1 | 5.00 | 50 | 1.00x | 0.99910 (0.99000) |"
    assert "| 100 | 2.00x |" in lines[3]
    assert lines[4].startswith("| quantization | what half is; not run: no half |  |")
    assert lines[5].startswith("| knowledge distillation | makes nothing cheaper by itself")
    assert len(lines) > 5 + len(MISSING)


def test_bf16_is_not_emulated():
    low = [own for own in TECHNIQUES if "bf16" in own.name]
    bare, able = (Machine(cpu="a", instructions=names, cores=1) for names in (("avx2",), ("amx_bf16",)))
    assert len(low) == 2 and all(own.missing(bare) and own.missing(able) is None for own in low)
    assert not any(own.missing(bare) for own in TECHNIQUES if own not in low)


def test_speeds_are_compared_among_rows_of_equal_operations():
    rows = [row_of("a", 50), row_of("b", 150), row_of("d", 9000, macs=2e6)]
    assert equal_macs_spread(rows) == pytest.approx(3)


def test_texts_are_spread_over_articles(tmp_path):
    text = "\n".join(f"paragraph {number} of five words" for number in range(30))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text + "\ntoo short"}) + "\n")
    assert wikipedia(tmp_path, 3) == [f"paragraph {number} of five words" for number in (0, 7, 14)]
    with pytest.raises(InputError, match="5 paragraphs, 6 are wanted"):
        wikipedia(Path(tmp_path), 6)
