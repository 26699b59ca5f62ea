import errno
import gzip
import json
import os
import random
import subprocess
import sys

import pytest

from terrazzo.data import Corpus, prepare
from terrazzo.data import gather as gathering
from terrazzo.data.gather import ordered_map
from terrazzo.errors import InputError, RunError

OPTIONS = {"preset": "english", "document": "line", "vocab_size": 192, "shard_bytes": 30_000, "near_duplicates": 0.8}
WORDS = ("river", "stone", "window", "garden", "letter", "morning", "engine", "paper", "silver", "north", "chapter")

KILLED = """
import json, os, signal, sys
import datasketch
from terrazzo.data import prepare
sources, out, options, points = json.loads(sys.argv[1])
for stage, count in points:
    child = os.fork()
    if child == 0:
        seen = []
        def progress(at, done, total, note):
            seen.append(at)
            if seen.count(stage) == count:
                os.kill(os.getpid(), signal.SIGKILL)
        prepare(sources, out, progress=progress, **options)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (stage, count)
"""


def document(i):
    return " ".join(random.Random(i).choices(WORDS, k=12)) + f" number {i}."


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Duplicates of the first chunk, exact and near, come in every later file."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "a.txt").write_text("".join(document(i) + "\n" for i in range(900)))
    rows = [{"text": document(i)} for i in range(400, 1300)] + [{"text": "short"}, {"text": None}]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = "id,text\n" + "".join(f"{i},{document(i).upper()}\n" for i in range(1200, 1700))
    table += "".join(f"{i},and {document(i)}\n" for i in range(30))
    (folder / "c.csv.gz").write_bytes(gzip.compress(table.encode()))
    return [str(folder / name) for name in ("a.txt", "b.jsonl", "c.csv.gz")]


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    return prepare(sources, tmp_path_factory.mktemp("whole") / "data", **OPTIONS)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "data.json"}


def few_lines(tmp_path, count=30):
    path = tmp_path / "few.txt"
    path.write_text("".join(document(i) + "\n" for i in range(count)))
    return path


def test_every_document_is_kept_once_and_counted(whole):
    figures = whole.manifest["statistics"]
    assert figures["documents"] == {"read": 2332, "kept": 1700, "train": 1530, "heldout": 170}
    assert {reason: counts["documents"] for reason, counts in figures["dropped"].items()} == {
        "exact duplicate": 600,
        "near duplicate": 30,
        "fewer than 10 characters": 1,
        "blank": 1,
    }
    assert [(s["documents"], s["kept"]) for s in figures["sources"]] == [(900, 900), (902, 400), (530, 400)]
    assert figures["dropped"]["fewer than 10 characters"]["examples"] == ["short"]
    assert figures["tokens"] == {"train": whole.train.num_tokens, "heldout": whole.heldout.num_tokens}
    assert figures["unknown_share"] == 0
    assert len(whole.manifest["shards"]["train"]) == 4
    decoded = {
        whole.tokenizer.decode(split.document(i).tolist())
        for split in (whole.train, whole.heldout)
        for i in range(split.num_documents)
    }
    plain = {document(i).replace(".", " .") for i in range(1700)}
    assert {text.replace(" .", ".") for text in decoded} == {text.replace(" .", ".") for text in plain}


def test_killed_at_every_stage_and_continued_gives_the_same_bytes(sources, whole, tmp_path):
    out = tmp_path / "data"
    points = [("clean", 3), ("tokenizer", 1), ("tokens", 3)]
    task = json.dumps([sources, str(out), OPTIONS, points])
    subprocess.run([sys.executable, "-c", KILLED, task], check=True, env={**os.environ, "PYTHONPATH": "src"})
    with pytest.raises(InputError, match="did not finish: run the same command again"):
        Corpus.open(out)
    seen = []
    resumed = prepare(sources, out, progress=lambda *event: seen.append(event), **OPTIONS)
    assert {stage for stage, *_ in seen} == {"tokens"}
    assert seen[0][1] > 2 * OPTIONS["shard_bytes"]
    assert content(out) == content(whole.path)
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.manifest["statistics"]["dropped"] == whole.manifest["statistics"]["dropped"]


def test_the_same_call_on_a_finished_folder_returns_at_once_and_another_is_refused(sources, whole):
    before = content(whole.path)
    seen = []
    again = prepare(sources, whole.path, progress=lambda *event: seen.append(event), **OPTIONS)
    assert (again.fingerprint, seen) == (whole.fingerprint, [])
    with pytest.raises(
        InputError, match="data made otherwise: preset was 'english' and is 'raw'; .*vocab_size was 192"
    ):
        prepare(sources, whole.path, **{**OPTIONS, "preset": "raw", "vocab_size": 512})
    with pytest.raises(InputError, match="source b.jsonl was where c.csv.gz is"):
        prepare([sources[0], sources[2]], whole.path, **OPTIONS)
    assert content(whole.path) == before


def test_a_failed_run_leaves_nothing_and_its_mend_works_in_the_same_folder(tmp_path):
    source, out = few_lines(tmp_path), tmp_path / "data"
    with pytest.raises(InputError, match="--vocab-size 9000: the corpus supports only"):
        prepare([source], out, vocab_size=9000)
    assert not (out / "data.json").exists()
    assert prepare([source], out, tokenizer_kind="bpe").heldout.num_documents == 3
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(InputError, match="bad.jsonl, line 2: no field 'text'"):
        prepare([bad], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_too_little_text_is_an_error_that_counts_the_reasons(tmp_path):
    source = tmp_path / "same.txt"
    source.write_text("the very same line\n" * 500 + "tiny\n")
    expected = r"only 1 left of 501 documents read \(499 exact duplicate, 1 fewer than 10 characters\); at least 20"
    with pytest.raises(InputError, match=expected):
        prepare([source], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_halves_of_surrogate_pairs_are_dropped_and_shown_as_replacements(tmp_path):
    source = tmp_path / "halves.jsonl"
    rows = [{"text": document(i)} for i in range(40)] + [{"text": f"half a pair \ud800 {document(50)}"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dropped = prepare([source], tmp_path / "data").manifest["statistics"]["dropped"]
    assert [example[:14] for reason in dropped.values() for example in reason["examples"]] == ["half a pair \ufffd "]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presett": "raw"}, "prepare: unknown key 'presett': did you mean 'preset'"),
        ({"preset": "klingon"}, "--preset klingon: known: english, german"),
        ({"heldout": 0.9}, "--heldout is a share"),
        ({"near_duplicates": 1.5}, "--near-duplicates is a similarity"),
        ({"tokenizer": "x", "vocab_size": 64}, "exclude each other"),
        ({"vocab_size": 10**20}, "--vocab-size must be from 1 to 16,777,216"),
        ({"tokenizer_kind": "unigram"}, "tokenizer_kind: Input should be 'wordpiece' or 'bpe'"),
    ],
)
def test_unusable_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepare([few_lines(tmp_path)], tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_other_files_and_a_second_writer_are_refused(tmp_path):
    source = few_lines(tmp_path)
    with pytest.raises(InputError, match="the folder holds other files; name a new or empty one"):
        prepare([source], tmp_path)
    with pytest.raises(InputError, match="few.txt: is a file; name a folder"):
        prepare([source], source)
    with pytest.raises(InputError, match="--out .*few.txt/data: cannot be made .Not a directory."):
        prepare([source], source / "data")

    def second(*event):
        with pytest.raises(InputError, match="another `terrazzo prepare` is writing"):
            prepare([source], tmp_path / "data")

    prepare([source], tmp_path / "data", progress=second)


def test_a_full_disk_ends_clearly_and_going_on_works(tmp_path, monkeypatch):
    source, out = few_lines(tmp_path), tmp_path / "data"
    real, full = os.fsync, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 8:
            raise full
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=r"data: the disk is full; .* run the same command again"):
        prepare([source], out)
    assert not list(out.rglob("*.tmp"))
    with pytest.raises(InputError, match="did not finish"):
        Corpus.open(out)
    assert prepare([source], out).train.num_documents == 27


def test_a_given_tokenizer_is_used_and_part_of_what_the_folder_is(tmp_path, whole):
    source, out = few_lines(tmp_path), tmp_path / "data"
    corpus = prepare([source], out, tokenizer=str(whole.path))
    assert (out / "tokenizer.json").read_bytes() == (whole.path / "tokenizer.json").read_bytes()
    assert corpus.vocab_size == 192
    with pytest.raises(InputError, match="tokenizer was '.*' and is None"):
        prepare([source], out)


def test_workers_give_the_results_of_one_process_in_order(monkeypatch):
    items = [(key, list(range(key))) for key in range(40)]
    monkeypatch.setattr(gathering, "_INLINE_BATCHES", 3)
    assert list(ordered_map(len, items, workers=2)) == [(key, key) for key in range(40)]
