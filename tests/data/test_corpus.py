import json

import numpy as np
import pytest

from terrazzo.data.corpus import MANIFEST, Corpus, SpecialTokens, Split, manifest_of
from terrazzo.data.shards import Shard, ShardWriter, shard_files, token_dtype
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.provenance import write_json_atomic

SHARDS = {"train-00000": [[5, 6, 7], [], [8]], "train-00001": [[9] * 5], "heldout-00000": [[6, 6]]}


@pytest.fixture
def folder(tmp_path):
    train_tokenizer(lambda: ["a few words, some twice"] * 9, "bpe", 320, shrink=True).save(
        str(tmp_path / "tokenizer.json")
    )
    shards = {"train": [], "heldout": []}
    for name, documents in SHARDS.items():
        writer = ShardWriter(tmp_path, name, token_dtype(320))
        writer.add(documents[:1])
        writer.add(documents[1:])
        shards[name.split("-")[0]].append(writer.close())
    write_json_atomic(tmp_path / MANIFEST, manifest_of(tmp_path, shards, note="kept"))
    return tmp_path


def test_documents_come_back_over_all_shards_without_empty_ones(folder):
    corpus = Corpus.open(folder, verify=True)
    train = corpus.train
    assert [train.document(i).tolist() for i in range(train.num_documents)] == [[5, 6, 7], [8], [9] * 5]
    assert (train.num_documents, train.num_tokens) == (3, 9)
    assert train.lengths.dtype == np.int32 and train.lengths.tolist() == [3, 1, 5]
    assert corpus.heldout.document(0).dtype == np.uint16
    assert corpus.special == SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
    assert corpus.special.special_ids == (0, 1, 2, 3, 4)
    assert corpus.vocab_size == corpus.tokenizer.get_vocab_size()
    assert corpus.manifest["note"] == "kept"
    for index in (3, -1):
        with pytest.raises(IndexError):
            train.document(index)
    with pytest.raises(ValueError, match="read-only"):
        train.document(0)[0] = 1


def test_ids_beyond_16_bits_and_a_split_without_documents(tmp_path):
    assert (token_dtype(65_536), token_dtype(65_537)) == (np.uint16, np.uint32)
    writer = ShardWriter(tmp_path, "a", token_dtype(65_537))
    writer.add([[65_536]])
    assert writer.close() == {"name": "a", "documents": 1, "tokens": 1}
    assert Shard(tmp_path, "a").document(0).tolist() == [65_536]
    ShardWriter(tmp_path, "b", token_dtype(9)).close()
    for empty in (Split([]), Split([Shard(tmp_path, "b")])):
        assert (empty.num_documents, empty.num_tokens, empty.lengths.tolist()) == (0, 0, [])


def test_the_fingerprint_follows_the_content(folder):
    before = Corpus.open(folder).fingerprint
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    assert manifest_of(folder, shards)["fingerprint"] == before
    swapped = {"train": shards["train"][::-1], "heldout": shards["heldout"]}
    assert manifest_of(folder, swapped)["fingerprint"] != before


def test_damage_is_found_and_the_file_named(folder):
    for name in (shard_files("train-00001")[0], "tokenizer.json"):
        file = folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        Corpus.open(folder)
        with pytest.raises(InputError, match=rf"{name}: damaged: its content does not match the checksum"):
            Corpus.open(folder, verify=True)
        file.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=rf"{name}: damaged: {len(whole) - 1} bytes instead of {len(whole)}"):
            Corpus.open(folder)
        file.unlink()
        with pytest.raises(InputError, match=rf"{name}: missing; restore it"):
            Corpus.open(folder)
        file.write_bytes(whole)


def test_shard_files_that_do_not_belong_together(folder):
    tokens, offsets = shard_files("train-00000")
    (folder / offsets).write_bytes((folder / "train-00001.offsets.npy").read_bytes())
    with pytest.raises(InputError, match=rf"{offsets}: the offsets do not fit {tokens} \(4 tokens\)"):
        Shard(folder, "train-00000")


def test_folders_that_are_no_finished_data_folder(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such data folder; make one with `terrazzo prepare"):
        Corpus.open(tmp_path / "nowhere")
    manifest = folder / MANIFEST
    manifest.write_text('{"format": "other"}')
    with pytest.raises(InputError, match="data.json: not a data folder of format"):
        Corpus.open(folder)
    manifest.write_text(json.dumps({"format": "terrazzo-data-1", "files": {}}))
    with pytest.raises(InputError, match="data.json: damaged .no field 'special'.; prepare the folder again"):
        Corpus.open(folder)
    manifest.write_text("{")
    with pytest.raises(InputError, match="data.json: does not parse"):
        Corpus.open(folder)
    manifest.unlink()
    with pytest.raises(InputError, match="no data.json; make a data folder"):
        Corpus.open(folder)
    (folder / ".work").mkdir()
    with pytest.raises(InputError, match="did not finish: run the same command again"):
        Corpus.open(folder)


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, "a", token_dtype(9))
    writer.add([[1, 2]])
    monkeypatch.setattr(np, "save", lambda file, array: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert list(tmp_path.iterdir()) == []
