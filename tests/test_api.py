"""`terrazzo.load(folder)`: vectors and fill-mask predictions."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import terrazzo
from terrazzo.api import Model
from terrazzo.checkpoint import save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, mosaicbert
from terrazzo.packed import Packed
from terrazzo.runtime import OpenVinoRuntime, TorchRuntime, to_openvino
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.testing import tiny_task_folder, tiny_texts

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat"]
VOCAB = len(SPECIAL) + len(WORDS)
SMALL = {"width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48}
TEXTS = ["the cat sat on a mat", "", "dog", "the dog ran " * 9, "a cat"]


def tokenizer_file(path, framed=True):
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    if framed:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(path))
    return path


def folder(path, config=None, kind=MaskedLM, framed=True):
    path.mkdir(exist_ok=True)
    model = kind(config or mosaicbert("tiny", VOCAB, **SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return save_model(path / "model", model, tokenizer_file(path / "tokenizer.json", framed))


@pytest.fixture
def model(tmp_path):
    return terrazzo.load(folder(tmp_path))


def ids_of(text, max_len=512):
    ids = [SPECIAL.index("[MASK]") if word == "[MASK]" else 5 + WORDS.index(word) for word in text.split()]
    return [2, *ids[: max_len - 2], 3]


@torch.no_grad()
def hidden(model, text, max_len=512):
    return model.encoder(Packed.from_sequences([ids_of(text, max_len)]))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_of_a_batch_are_those_of_each_text_alone(model, pooling, normalize):
    rows = [hidden(model, text) for text in TEXTS]
    pooled = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.amax(0)}
    expected = torch.stack([pooled[pooling](row) for row in rows])
    expected = F.normalize(expected) if normalize else expected
    for batch_tokens in (16_384, 12):
        vectors = model.encode(TEXTS, pooling, normalize, batch_tokens=batch_tokens)
        assert vectors.dtype == np.float32 and vectors.flags.owndata
        torch.testing.assert_close(torch.from_numpy(vectors), expected, rtol=0, atol=1e-5)


def test_text_is_cut_with_its_special_tokens_kept(model):
    for max_len in (6, 3):
        expected = hidden(model, TEXTS[0], max_len).mean(0)
        vector = torch.from_numpy(model.encode([TEXTS[0]], max_len=max_len)[0])
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)
    for max_len in (2, 0):
        with pytest.raises(InputError, match=f"max_len={max_len}: a text needs at least 3"):
            model.encode(TEXTS, max_len=max_len)


def test_learned_positions_limit_the_length(tmp_path):
    model = terrazzo.load(folder(tmp_path, bert("tiny", VOCAB, **SMALL, max_len=8), Encoder))
    assert model.encode(TEXTS).shape == (5, 32)
    with pytest.raises(InputError, match="max_len=9: the model has 8 learned positions"):
        model.encode(TEXTS, max_len=9)


def test_no_texts(model):
    assert model.encode([]).shape == (0, 32)


def test_a_tokenizer_that_frames_nothing_gets_the_frame_that_the_server_gives(model, tmp_path):
    bare = Tokenizer.from_file(str(tokenizer_file(tmp_path / "bare.json", framed=False)))
    assert bare.num_special_tokens_to_add(is_pair=False) == 0
    np.testing.assert_array_equal(Model(model.network, bare).encode(TEXTS), model.encode(TEXTS))
    with pytest.raises(InputError, match="max_len=2: a text needs at least 3"):
        Model(model.network, bare).encode(TEXTS, max_len=2)


def test_threads_with_limits_of_their_own_do_not_cut_for_each_other(model):
    texts = [f"{text} the dog ran on a mat" for text in TEXTS] * 8
    expected = {max_len: model.encode(texts, max_len=max_len) for max_len in (4, 7)}

    def differs(max_len):
        return float(np.abs(model.encode(texts, max_len=max_len) - expected[max_len]).max())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(differs, (4, 7) * 24)) < 1e-5
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "the cat"}, r"got the one text 'the cat': write encode\(\[text\]\)"),
        ({"texts": ["cat", None]}, "text 1 is NoneType None"),
        ({"texts": ["cat"], "pooling": "sum"}, "pooling='sum': known: mean, cls, max"),
        ({"texts": ["cat"], "batch_tokens": 0}, "batch_tokens=0"),
    ],
)
def test_mistakes_in_encode(model, arguments, message):
    with pytest.raises(InputError, match=message):
        model.encode(**arguments)


def test_fill_mask_ranks_the_whole_vocabulary(model):
    text = "the [MASK] sat on a [MASK]"
    with torch.no_grad():
        logits = model.network(Packed.from_sequences([ids_of(text)]))
    first, second = model.fill_mask(text, top_k=3)
    for predictions, position in ((first, 2), (second, 6)):
        best = logits[position].softmax(-1).topk(3)
        assert [p.id for p in predictions] == best.indices.tolist()
        assert [p.probability for p in predictions] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert all(p.token in SPECIAL + WORDS + [""] for p in predictions)
    assert len(model.fill_mask(text, top_k=999)[0]) == VOCAB


def test_fill_mask_without_a_mask_or_a_head(model, tmp_path):
    with pytest.raises(InputError, match=r"no \[MASK\] in the first 4 tokens of 'a cat'"):
        model.fill_mask("a cat")
    encoder = terrazzo.load(folder(tmp_path / "encoder", kind=Encoder))
    with pytest.raises(InputError, match="no masked-language-model head"):
        encoder.fill_mask("a [MASK]")
    causal = terrazzo.load(folder(tmp_path / "causal", mosaicbert("tiny", VOCAB, **SMALL, causal=True)))
    with pytest.raises(InputError, match="this model is causal"):
        causal.fill_mask("a [MASK]")


def test_bf16_weights_give_nearby_float32_vectors(tmp_path):
    path = folder(tmp_path)
    exact, rough = (terrazzo.load(path, dtype=dtype).encode(TEXTS, normalize=True) for dtype in (None, torch.bfloat16))
    assert rough.dtype == np.float32
    assert ((exact * rough).sum(1) > 0.99).all() and (exact != rough).any()


def test_unknown_backend(tmp_path):
    with pytest.raises(InputError, match="backend='groupd': did you mean 'grouped'"):
        terrazzo.load(folder(tmp_path), backend="groupd")


def test_folder_without_or_with_a_foreign_tokenizer(tmp_path):
    path = folder(tmp_path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json"):
        terrazzo.load(path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json: does not parse"):
        terrazzo.load(path)
    smaller = save_model(tmp_path / "smaller", MaskedLM(mosaicbert("tiny", VOCAB - 1, **SMALL)))
    tokenizer_file(smaller / "tokenizer.json")
    with pytest.raises(InputError, match="ids up to 12, the model's embedding ends at 11"):
        terrazzo.load(smaller)


def test_devices_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="device='gpu': take 'cpu', 'cuda'"):
        terrazzo.load(tmp_path, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device='cuda': PyTorch sees no GPU here"):
            terrazzo.load(tmp_path, device="cuda")


def on_openvino(model):
    """The same model, its encoder in OpenVINO."""
    runtime = OpenVinoRuntime(to_openvino(model.encoder), model.config, streams=2)
    return Model(model.network, model.tokenizer, runtime=runtime)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_vectors_do_not_depend_on_company_streams_or_chunks(model, runtime, monkeypatch):
    model = on_openvino(model) if runtime == "openvino" else model
    texts = [" ".join(WORDS[: 1 + i % 8]) + " cat" * (i % 5) for i in range(40)]
    alone = np.concatenate([model.encode([text]) for text in texts])
    monkeypatch.setattr("terrazzo.api._TEXTS_AT_A_TIME", 13)
    for streams, batch_tokens in ((1, 4096), (2, 64), (3, 24)):
        model.runtime.streams = streams
        np.testing.assert_allclose(model.encode(texts, batch_tokens=batch_tokens), alone, rtol=0, atol=1e-5)


def test_streams_share_the_threads_and_give_them_back(model):
    threads, seen = torch.get_num_threads(), []
    run = type(model.runtime).__call__

    class Watched(TorchRuntime):
        def __call__(self, batch, select_M=None):
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            return run(self, batch, select_M)

    try:
        torch.set_num_threads(4)
        model.runtime = Watched(model.encoder, batch_tokens=16, streams=2)
        model.encode(TEXTS * 4)
        assert {count for _, count in seen} == {2} and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_stream_reaches_the_caller(model):
    class Broken(TorchRuntime):
        def __call__(self, batch, select_M=None):
            raise InputError("out of order")

    model.runtime = Broken(model.encoder, batch_tokens=16, streams=2)
    with pytest.raises(InputError, match="out of order"):
        model.encode(TEXTS * 4)


def test_every_ability_runs_on_an_exported_graph(model, tmp_path):
    graph = on_openvino(model)
    for pooling in ("mean", "cls", "max"):
        np.testing.assert_allclose(graph.encode(TEXTS, pooling), model.encode(TEXTS, pooling), rtol=0, atol=1e-4)
    text = "the [MASK] sat on a [MASK]"
    pairs = zip(graph.fill_mask(text), model.fill_mask(text), strict=True)
    for found, expected in pairs:
        assert [p.token for p in found] == [p.token for p in expected]
        assert [p.probability for p in found] == pytest.approx([p.probability for p in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (LabelTask(classes=("no", "yes", "perhaps")), tiny_texts(6)),
        (TagTask(labels=("X", "Y")), tiny_texts(6)),
        (SpanTask(), [{"question": "the cat", "context": text} for text in tiny_texts(6)]),
    ],
    ids=["label", "tag", "span"],
)
def test_every_head_runs_on_an_exported_graph(task, rows, tmp_path):
    loaded = load_task_model(tiny_task_folder(tmp_path / "task", task))
    for parameter in loaded.model.parameters():  # apart from each other, so that a swap is seen
        parameter.data += torch.randn(parameter.shape) * 0.3
    model = Model(loaded.model.encoder, loaded.tokenizer, loaded)
    runtime = OpenVinoRuntime(to_openvino(model.encoder), model.config, streams=2)
    graph = Model(loaded.model.encoder, loaded.tokenizer, loaded, runtime)
    for found, expected in zip(graph.predict(rows, 16), model.predict(rows), strict=True):
        assert expected.error is None and (found.label, found.tags) == (expected.label, expected.tags)
        assert found.score == pytest.approx(expected.score, abs=1e-4)
