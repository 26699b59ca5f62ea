from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import terrazzo
from terrazzo.checkpoint import save_model
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.runtime import save_openvino, to_openvino
from terrazzo.runtime.folder import write_record
from terrazzo.serve.models import CannotDo, Models, TooLong, UnknownModel
from terrazzo.serve.settings import Settings, names_of
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import TaskModel, save_task_model
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.testing import TINY_MODEL, tiny_texts
from terrazzo.train import Init

CLOSE = {"rtol": 0, "atol": 1e-5}
TASKS = {
    "label": (LabelTask(classes=("good", "bad", "neither")), "the cat purrs"),
    "several": (LabelTask(classes=("a", "b"), several=True), "the dog barks at night"),
    "pair": (LabelTask(kind="pair", classes=("no", "yes")), ("the cat", "a bird sings")),
    "regression": (RegressionTask(pair=True, mean=2.5, std=1.5), ("the cat", "the dog barks")),
    "multi": (
        MultiTask(problems=(Problem(name="p", classes=("x", "y")), Problem(name="q", classes=("u", "v", "w")))),
        {"text": "the river flows", "problem": "q"},
    ),
    "tag": (TagTask(labels=("PER", "LOC")), "the cat purrs near the old house"),
    "span": (SpanTask(), {"question": "who purrs", "context": "the cat purrs in the garden. the dog barks."}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One encoder: alone, with its masked-language-model head, and under the head of every task; and a stranger."""
    root = tmp_path_factory.mktemp("models")
    return make_folders(root, seed=1, names=["mlm", "plain", *TASKS]) | {
        "other": make_folders(root, 2, ["other"])["other"]
    }


def make_folders(root: Path, seed: int, names) -> dict[str, Path]:
    torch.manual_seed(seed)
    tokenizer = root / "tokenizer.json"
    train_tokenizer(lambda: tiny_texts(50), "wordpiece", 256, shrink=True).save(str(tokenizer))
    config = Init(fields=TINY_MODEL).encoder_config(vocabulary(tokenizer))
    network = MaskedLM(config)
    for name in names:
        if name == "mlm":
            save_model(root / name, network, tokenizer)
        elif name in TASKS:
            model = TaskModel(network.encoder, TASKS[name][0])
            save_task_model(root / name, model, tokenizer, max_len=24)
        else:
            save_model(root / name, network.encoder, tokenizer)
    return {name: root / name for name in names}


def vocabulary(tokenizer: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer)).get_vocab_size()


def with_models(given, use, **settings):
    """Open models, use them, drain them."""

    async def main():
        models = await Models.open(given, Settings(**settings))
        try:
            return await use(models)
        finally:
            assert await models.drain(10)

    return asyncio.run(main())


def test_names():
    assert names_of(["a/b", "x=c/b"]) == {"b": Path("a/b"), "x": Path("c/b")}
    with pytest.raises(InputError, match="two models are called 'b'.*NAME=c/b"):
        names_of(["a/b", "c/b"])
    for wrong in ("=a", "x=", " =a"):
        with pytest.raises(InputError, match="NAME=DIR"):
            names_of([wrong])
    with pytest.raises(InputError, match="no model to serve"):
        names_of([])


def test_a_folder_whose_name_has_an_equals_sign(tmp_path, folders):
    shutil.copytree(folders["plain"], tmp_path / "lr=3")
    assert names_of([tmp_path / "lr=3"]) == {"lr=3": tmp_path / "lr=3"}


def test_embeddings_are_those_of_encode(folders):
    texts = [*tiny_texts(20), "", "the cat " * 200]
    model = terrazzo.load(folders["plain"])

    async def use(models):
        served = models["plain"]
        vectors, usage = await served.embed(texts)
        torch.testing.assert_close(vectors, model.encode(texts, normalize=True), **CLOSE)
        for pooling in ("cls", "max"):
            own, _ = await served.embed(texts, pooling=pooling, normalize=False)
            torch.testing.assert_close(own, model.encode(texts, pooling=pooling), **CLOSE)
        assert (usage.tokens[-2:], usage.truncated[-2]) == ((2, 64), 0) and usage.truncated[-1] > 100
        ids = [(await served.tokenize([text]))[0].ids for text in texts]
        bare = [(await served.tokenize([text], special=False))[0].ids for text in texts]
        assert [one[1:-1] for one in ids] == bare
        for given in (ids[:-2], bare[:-2]):
            again, counted = await served.embed(given)
            torch.testing.assert_close(again, vectors[:-2], **CLOSE)
            assert counted.tokens == usage.tokens[:-2]
        cut, counted = await served.embed([ids[-1]])
        torch.testing.assert_close(cut, vectors[-1:], **CLOSE)
        assert (counted.tokens, counted.truncated) == (usage.tokens[-1:], usage.truncated[-1:])
        assert (await served.embed([]))[0].shape == (0, 32)

    with_models([folders["plain"]], use)


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_those_of_predict(folders, name):
    row = TASKS[name][1]
    expected = terrazzo.load(folders[name]).predict([row, row, ""])

    async def use(models):
        results, usage = await models[name].predict([row, row, ""])
        for result, right in zip(results[:2], expected[:2], strict=True):
            assert (result.label, result.labels, result.tags) == (right.label, right.labels, right.tags)
            assert [(s.start, s.end, s.label) for s in result.spans or ()] == [
                (s.start, s.end, s.label) for s in right.spans or ()
            ]
            if right.probabilities is not None:
                given = [result.probabilities[label] for label in right.probabilities]
                torch.testing.assert_close(np.array(given), np.array(list(right.probabilities.values())), **CLOSE)
            if right.score is not None:
                torch.testing.assert_close(result.score, right.score, **CLOSE)
        assert results[2].error and expected[2].error.endswith(results[2].error)
        assert usage.tokens[0] > 2 and usage.tokens[2] == 0
        assert models[name].abilities == ("embed", "rerank", TASKS[name][0].kind)

    with_models([folders[name]], use)


def test_masks_are_filled_as_offline(folders):
    texts = ["the [MASK] purrs", "a bird [MASK] at [MASK]"]
    model = terrazzo.load(folders["mlm"])

    async def use(models):
        served = models["mlm"]
        filled, usage = await served.fill_mask(texts, top_k=3)
        for given, text in zip(filled, texts, strict=True):
            for mask, right in zip(given, model.fill_mask(text, top_k=3), strict=True):
                assert [one.id for one in mask] == [one.id for one in right]
                for one, other in zip(mask, right, strict=True):
                    torch.testing.assert_close(one.probability, other.probability, **CLOSE)
        assert len(usage.tokens) == 2
        with pytest.raises(InputError, match=r"text 1 has no \[MASK\]"):
            await served.fill_mask(["[MASK]", "the cat"])
        assert "fill_mask" in served.abilities

    with_models([folders["mlm"]], use)


def test_what_a_model_cannot_do_is_said(folders):
    async def use(models):
        with pytest.raises(CannotDo, match="no head of a task"):
            await models["plain"].predict(["a"])
        with pytest.raises(CannotDo, match="no masked-language-model head"):
            await models["plain"].fill_mask(["[MASK]"])
        with pytest.raises(UnknownModel, match="did you mean 'plain'"):
            models["plane"]
        with pytest.raises(InputError, match="input 1, token 0: 99999 is no token id"):
            await models["plain"].embed(["a", [99999]])

    with_models([folders["plain"]], use)


def test_a_model_for_pairs_reranks_by_its_score_and_others_by_the_cosine(folders):
    query, documents = "the cat", ["the cat purrs", "a bird", "the dog barks"]

    async def use(models):
        scores, _ = await models["pair"].rerank(query, documents)
        results, _ = await models["pair"].predict([(query, document) for document in documents])
        assert scores.tolist() == [result.probabilities["yes"] for result in results]
        scores, _ = await models["regression"].rerank(query, documents)
        results, _ = await models["regression"].predict([(query, document) for document in documents])
        assert scores.tolist() == [result.score for result in results]
        scores, usage = await models["plain"].rerank(query, documents)
        vectors = terrazzo.load(folders["plain"]).encode([query, *documents], normalize=True)
        torch.testing.assert_close(scores, (vectors[1:] @ vectors[0]).astype(np.float64), **CLOSE)
        assert len(usage.tokens) == 4
        with pytest.raises(InputError, match="document 1: a text is empty"):
            await models["pair"].rerank(query, ["a", "\x01"])

    with_models([folders["pair"], folders["regression"], folders["plain"]], use)


def test_the_relevant_class_is_the_one_that_the_task_looks_for(tmp_path, folders):
    torch.manual_seed(0)
    encoder = Encoder(terrazzo.load(folders["plain"]).config)
    task = LabelTask(kind="pair", classes=("relevant", "no"), positive="relevant", metric="f1_binary")
    save_task_model(tmp_path / "m", TaskModel(encoder, task), folders["plain"] / "tokenizer.json", max_len=24)

    async def use(models):
        scores, _ = await models["m"].rerank("the cat", ["a bird"])
        ((result,), _) = await models["m"].predict([("the cat", "a bird")])
        assert scores.tolist() == [result.probabilities["relevant"]]

    with_models([tmp_path / "m"], use)


@pytest.mark.parametrize("truncate", [False, "error"])
def test_what_is_too_long_is_refused_if_it_may_not_be_cut(folders, truncate):
    long = "the cat purrs " * 40

    async def use(models):
        with pytest.raises(TooLong, match="input 1 has 122 tokens, the model reads 64") as refused:
            await models["plain"].embed(["a", long], truncate=truncate)
        assert (refused.value.index, refused.value.tokens, refused.value.limit) == (1, 122, 64)
        with pytest.raises(TooLong, match="input 0 has 122 tokens, the model reads 24"):
            await models["label"].predict([long], truncate=truncate)
        _, usage = await models["label"].predict([long])
        assert (usage.tokens, usage.truncated) == ((24,), (98,))
        await models["tag"].predict([long], truncate=truncate)  # read in windows

    with_models([folders["plain"], folders["label"], folders["tag"]], use)


def test_heads_of_one_encoder_hold_it_once(folders):
    names = ["plain", "mlm", *TASKS]

    async def use(models):
        one = models["plain"]
        assert len({id(models[name].engine) for name in names}) == 1
        assert len({id(models[name].runtime) for name in names}) == 1
        assert models["other"].engine is not one.engine
        encoders = {id(models[name].loaded.head.answer.__closure__[0].cell_contents.encoder) for name in TASKS}
        assert encoders == {id(one.runtime.encoder)}, "a head kept a copy of its own"
        asked = [models[name].predict([TASKS[name][1]]) for name in TASKS]
        together = await asyncio.gather(*asked, one.embed(["the cat"]), models["mlm"].fill_mask(["[MASK]"]))
        for name, (results, _) in zip(TASKS, together, strict=False):
            (right,) = terrazzo.load(folders[name]).predict([TASKS[name][1]])
            assert (results[0].label, results[0].tags) == (right.label, right.tags)
        return one.engine

    stats = with_models([*(folders[name] for name in names), folders["other"]], use)
    assert not any(thread.is_alive() for thread in stats._threads)


def export(source: Path, folder: Path) -> Path:
    """The folder as `terrazzo export` writes it, nothing measured."""
    shutil.copytree(source, folder)
    save_openvino(to_openvino(terrazzo.load(source).encoder), folder / "encoder.xml")
    write_record(folder, runtime="openvino", precision="fp32", max_len=64)
    return folder


def test_exported_folders_share_their_graph_and_keep_it(tmp_path, folders):
    names = ["plain", "mlm", "label"]
    texts = tiny_texts(5)
    graphs = [export(folders[name], tmp_path / name) for name in names]

    async def use(models):
        assert {models[name].runtime.name for name in names} == {"openvino"}
        assert len({id(models[name].runtime) for name in names}) == 1
        for folder in graphs:  # written into in place, where a server may have mapped it
            for name in ("encoder.bin", "model.safetensors"):
                (folder / name).write_bytes(bytes((folder / name).stat().st_size))
        vectors, _ = await models["plain"].embed(texts)
        torch.testing.assert_close(vectors, terrazzo.load(folders["plain"]).encode(texts, normalize=True), **CLOSE)
        ((result,), _) = await models["label"].predict(texts[:1])
        (right,) = terrazzo.load(folders["label"]).predict(texts[:1])
        torch.testing.assert_close(result.score, right.score, **CLOSE)
        ((masks,), _) = await models["mlm"].fill_mask(["the [MASK] purrs"])
        torch.testing.assert_close(
            masks[0][0].probability,
            terrazzo.load(folders["mlm"]).fill_mask("the [MASK] purrs")[0][0].probability,
            **CLOSE,
        )

    with_models(graphs, use)


def test_hooks_are_told_of_batches(folders):
    async def use(models):
        told = []
        models.hooks.append(lambda name, stats: told.append((name, stats.documents)))
        await models["label"].predict(["the cat", "a bird"])
        return told

    told = with_models([folders["plain"], folders["label"]], use)
    assert {name for name, _ in told} == {"plain"} and sum(count for _, count in told) == 2


def replace(folder: Path, new: Path) -> None:
    """As `save_model` does it: the new folder takes the name in one step."""
    aside = folder.with_name("aside")
    shutil.copytree(new, aside)
    old = folder.with_name("old")
    folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old)


def test_a_replaced_folder_is_loaded_and_no_request_is_lost(tmp_path, folders):
    for name in ("label", "plain"):
        shutil.copytree(folders[name], tmp_path / name)
    text = "the cat purrs in the garden"
    old, new = (terrazzo.load(folders[name]).encode([text], normalize=True)[0] for name in ("plain", "other"))

    async def use(models):
        seen, stop = [], asyncio.Event()

        async def client():
            while not stop.is_set():
                vectors, _ = await models["plain"].embed([text])
                seen.append(np.abs(vectors[0] - old).max() < 1e-4)
                assert seen[-1] or np.abs(vectors[0] - new).max() < 1e-4

        before = models["plain"].fingerprint
        clients = [asyncio.create_task(client()) for _ in range(8)]
        assert await models.poll() == []
        replace(tmp_path / "plain", folders["other"])
        assert await models.poll() == [], "a folder that has just changed may not be whole"
        assert await models.poll() == ["plain"]
        assert await models.poll() == []
        count = len(seen)
        while len(seen) < count + 50:
            await asyncio.sleep(0)
        stop.set()
        await asyncio.gather(*clients)
        assert seen[0] and not any(seen[-8:])
        assert models["plain"].fingerprint != before
        (result,), _ = await models["label"].predict([text])
        assert result.label == terrazzo.load(folders["label"]).predict([text])[0].label
        assert models["plain"].engine is not models["label"].engine
        replace(tmp_path / "label", folders["several"])
        await models.reload("label")
        assert models["label"].labels == ("a", "b")
        await asyncio.wait(models._retiring) if models._retiring else None
        assert len(models._encoders._known) == 2, "an encoder that nobody uses is still held"

    with_models([tmp_path / "plain", tmp_path / "label"], use)


def test_requests_under_way_end_on_the_old_model(tmp_path, folders):
    shutil.copytree(folders["plain"], tmp_path / "m")

    async def use(models):
        engine = models["m"].engine
        asked = asyncio.create_task(models["m"].embed(tiny_texts(300)))
        await asyncio.sleep(0)
        replace(tmp_path / "m", folders["other"])
        await models.reload("m")
        assert models["m"].engine is not engine
        vectors, _ = await asked
        torch.testing.assert_close(
            vectors, terrazzo.load(folders["plain"]).encode(tiny_texts(300), normalize=True), **CLOSE
        )

    with_models([tmp_path / "m"], use)


def test_a_broken_folder_leaves_the_model_as_it_was(tmp_path, folders, caplog):
    shutil.copytree(folders["label"], tmp_path / "m")

    async def use(models):
        (before,), _ = await models["m"].predict(["the cat"])
        for name in ("head.safetensors", "model.safetensors"):  # in place: the files that were read are no more
            file = tmp_path / "m" / name
            file.write_bytes(bytes(file.stat().st_size))
        with caplog.at_level(logging.ERROR, "terrazzo.serve"):
            assert [await models.poll() for _ in range(4)] == [[]] * 4
        (record,) = caplog.records
        assert "stays as it was" in record.message and "model.safetensors" in record.message
        (after,), _ = await models["m"].predict(["the cat"])
        assert after == before
        with pytest.raises(InputError, match="model.safetensors"):
            await models.reload("m")
        shutil.rmtree(tmp_path / "m")
        assert await models.poll() == await models.poll() == []
        shutil.copytree(folders["several"], tmp_path / "m")
        assert [await models.poll() for _ in range(2)] == [[], ["m"]]
        assert models["m"].labels == ("a", "b")

    with_models([tmp_path / "m"], use)


def test_weights_that_are_not_finite_are_refused(tmp_path, folders):
    model = terrazzo.load(folders["plain"])
    with torch.no_grad():
        model.encoder.embeddings.tokens.weight.fill_(torch.nan)
    save_model(tmp_path / "m", model.network, folders["plain"] / "tokenizer.json")
    before = threading.active_count()
    with pytest.raises(InputError, match="not finite"):
        asyncio.run(Models.open([folders["plain"], tmp_path / "m"]))
    assert threading.active_count() == before, "the engine of the other model still runs"


def test_ready_until_it_drains(folders):
    async def use(models):
        assert models.ready() == {"plain": None}
        assert await models.drain(10)
        assert models.ready() == {"plain": "stopping"}

    with_models([folders["plain"]], use)


def test_a_folder_of_model_folders_names_them(folders, tmp_path):
    (tmp_path / "several" / "empty").mkdir(parents=True)
    for name in ("plain", "label"):
        shutil.copytree(folders[name], tmp_path / "several" / name)
    inner = tmp_path / "several"
    with pytest.raises(InputError, match=f"it holds model folders: terrazzo serve {inner}/label {inner}/plain$"):
        asyncio.run(Models.open([inner]))
