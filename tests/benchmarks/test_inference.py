"""The comparison of `encode` with its peers: who is compared with whom, and peers that keep the order of texts."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.inference import Measured, fastest, rows_of
from benchmarks.inference_peers import Padded, Setting

NO_SETTING = Setting(0, 0)


def measured(seconds, cosine=1.0):
    return Measured(NO_SETTING, [seconds] * 5, [seconds] * 5, cosine, cosine)


@pytest.fixture
def contest():
    return {
        "transformers fp32": measured(8.0),
        "OpenVINO fp32": measured(6.0),
        "OpenVINO int8": measured(3.0, 0.998),
        "sentence-transformers": measured(12.0),
        "terrazzo torch fp32": measured(5.0),
        "terrazzo openvino int8": measured(2.0, 0.997),
    }


def test_each_row_compares_the_fastest_of_those_that_agree(contest):
    rows = {row.id: row for row in rows_of(contest)}
    assert rows["I1"].value == pytest.approx(1.5) and rows["I1"].peer.startswith("OpenVINO int8")
    assert rows["I2"].value == pytest.approx(1.2) and rows["I2"].peer.startswith("OpenVINO fp32")
    assert rows["I3"].value == pytest.approx(6.0) and rows["I3"].verdict == "reaches the goal"
    assert rows["I4"].value == 0.997 and rows["I4b"].value == 1.0


def test_what_does_not_agree_is_no_result(contest):
    contest["terrazzo openvino int8"].cosine_mean = 0.99
    assert {row.id: row for row in rows_of(contest)}["I1"].value == pytest.approx(3 / 5)
    contest["terrazzo torch fp32"].cosine_mean = 0.9
    assert {row.id: row for row in rows_of(contest)}["I1"].status == "not run (none of ours agrees)"
    assert fastest(contest, ["nobody"], 0.0) is None


@pytest.mark.parametrize("streams", [1, 2])
def test_a_padded_peer_keeps_the_order_and_leaves_padding_out(tmp_path, streams):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    def opener(model, prepared, streams):
        return lambda inputs: np.stack([inputs["input_ids"], 1 - inputs["attention_mask"]], axis=-1).astype(np.float32)

    texts = ["a", "c c c c", "b b", "a b c"]
    vectors = Padded(opener, tmp_path, tmp_path, Setting(2, streams)).encode(texts)
    np.testing.assert_allclose(vectors, [[1, 0], [3, 0], [2, 0], [2, 0]])
