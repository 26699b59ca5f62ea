from __future__ import annotations

import dataclasses
import json
import zipfile

import pytest
import torch

from terrazzo.checkpoint import load_config, save_model
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.tasks import Example
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr
from terrazzo.tasks.suites import fine_tuned, read_suite, run_suite, suite_names
from terrazzo.tasks.suites.manifest import Procedure, Published
from terrazzo.tasks.suites.result import (
    MissingTask,
    SeedRun,
    SuiteResult,
    TaskOutcome,
)
from terrazzo.tasks.suites.sources import draw_rows, local_file, missing_files, split_rows, task_rows
from terrazzo.testing import TINY_MODEL, tiny_corpus


def test_every_manifest_reads_and_glue_follows_mosaicberts_table():
    assert suite_names() == ["blimp", "german", "glue", "spanish", "sts"]
    for name in suite_names():
        assert read_suite(name).tasks
    glue = read_suite("glue")
    table = {t.name: (t.paper.lr, t.paper.batch_size, t.paper.epochs, len(t.paper.seeds)) for t in glue.tasks}
    assert table == {
        "mnli": ((5e-5,), 48, 3, 1),
        "qqp": ((3e-5,), 16, 5, 1),
        "qnli": ((1e-5,), 16, 10, 1),
        "sst2": ((3e-5,), 16, 3, 3),
        "cola": ((5e-5,), 32, 10, 4),
        "rte": ((1e-5,), 16, 3, 5),
        "mrpc": ((8e-5,), 32, 10, 5),
        "stsb": ((3e-5,), 32, 10, 5),
    }
    assert [t.name for t in glue.tasks if t.start_from == "mnli"] == ["rte", "mrpc", "stsb"]
    assert glue.procedure_of(glue.task("mnli"), "quick").train_rows == 1000


def test_a_suite_that_is_not_there_is_named():
    with pytest.raises(InputError, match="did you mean 'glue'"):
        read_suite("gleu")
    with pytest.raises(InputError, match="did you mean 'sst2'"):
        read_suite("glue").task("sst")


def test_a_manifest_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    head = 'name = "mine"\ntitle = "Mine"\nprocedure = "p"\n[[tasks]]\nname = "t"\ntitle = "T"\nkind = "label"\n'
    file.write_text(head + 'download = "d"\nmetrics = ["accuracy"]\nevaluate = { dev = "d.tsv" }\n', encoding="utf-8")
    with pytest.raises(InputError, match="task t: label tasks need training rows"):
        read_suite(file)
    file.write_text(head + 'download = "d"\nmetric = ["accuracy"]\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"mine.toml: .*'tasks.0.metric': did you mean 'metrics'"):
        read_suite(file)


def rows(count):
    return [Example(text=f"text {i}", target="a", where=str(i)) for i in range(count)]


def test_draws_and_splits_do_not_depend_on_the_order_of_rows():
    given = rows(1000)
    drawn = draw_rows(given, 100)
    assert len(drawn) == 100 and {e.text for e in draw_rows(given[::-1], 100)} == {e.text for e in drawn}
    assert [int(e.where) for e in drawn] == sorted(int(e.where) for e in drawn)
    again = [dataclasses.replace(row, where="elsewhere") for row in given[:50]]
    train, held = split_rows([*given, *again], 0.3)
    assert 300 <= len(held) < 350 and not {e.text for e in train} & {e.text for e in held}
    for some in (drawn, list({e.text: e for e in train}.values())):
        rest, chosen_by = split_rows(some, 0.3, "choice")
        assert len(rest) + len(chosen_by) == len(some) and len({e.text for e in chosen_by}) == len(some) * 3 // 10
        assert not {e.text for e in rest} & {e.text for e in chosen_by}


def test_missing_files_are_named_and_a_fallback_steps_in(tmp_path):
    german, glue = read_suite("german"), read_suite("glue")
    assert missing_files(glue.task("qnli"), tmp_path) == ("glue/QNLI/train.tsv", "glue/QNLI/dev.tsv")
    news = german.task("10kgnad")
    assert missing_files(news, tmp_path) == ("10kgnad/train.csv", "10kgnad/test.csv")
    (tmp_path / "10kgnad").mkdir()
    text = "".join(f"{'Web' if i % 2 else 'Sport'};'Satz, mit; \"Komma\" {i}.'\n" for i in range(40))
    (tmp_path / "10kgnad" / "test.csv").write_text(text, encoding="utf-8")
    assert missing_files(news, tmp_path) == ()
    found = task_rows(news, Procedure(train_rows=20), tmp_path, tmp_path / "cache")
    assert len(found.train) == 20 and list(found.evaluate) == ["held out"] and "test file split" in found.note
    assert found.train[0].text.startswith('Satz, mit; "Komma"') and found.train[0].target in ("Web", "Sport")


def test_members_of_an_archive_are_files_too(tmp_path):
    spanish = read_suite("spanish").task("conll02")
    assert len(missing_files(spanish, tmp_path)) == 2
    (tmp_path / "nltk_corpora").mkdir()
    with zipfile.ZipFile(tmp_path / "nltk_corpora" / "conll2002.zip", "w") as archive:
        for part in ("train", "testb"):
            archive.writestr(f"conll2002/esp.{part}", "Sao NC B-LOC\nPaulo VMI I-LOC\n\n, Fc O\n")
    assert missing_files(spanish, tmp_path) == ()
    found = task_rows(spanish, Procedure(), tmp_path, tmp_path / "cache")
    assert [row.target for row in found.train] == [("B-LOC", "I-LOC"), ("O",)]
    with pytest.raises(InputError, match="no such file in the archive"):
        local_file(tmp_path, "nltk_corpora/conll2002.zip/conll2002/none", tmp_path / "cache")


def result():
    runs = tuple(SeedRun(seed=s, lr=1e-4, score=0.7 + s / 100, scores={"dev": {"accuracy": 0.7}}) for s in (0, 1))
    card = Published(model="Theirs", value=0.9, source="their card")
    first = TaskOutcome(
        name="a", title="A", metrics=("accuracy",), score=0.705, spread=0.007, runs=runs, published=(card,)
    )
    second = dataclasses.replace(first, name="b", title="B", score=float("nan"), note="odd rows", published=())
    absent = MissingTask(name="c", title="C", files=("c.tsv",), download="from there", published=(card,))
    return SuiteResult(
        suite="s",
        title="S",
        model="m",
        profile="quick",
        procedure="p",
        mean=0.705,
        tasks=(first, second),
        missing=(absent,),
        published=(card,),
    )


def test_published_figures_stand_apart_and_missing_tasks_are_named():
    markdown = result().markdown()
    line = next(line for line in markdown.splitlines() if line.startswith("| A "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "A",
        "accuracy",
        "70.5 ± 0.7 (2 seeds)",
        "Theirs 90.0",
    ]
    assert "| C |  | not run: files missing | Theirs 90.0 |" in markdown
    assert "- C: missing c.tsv (from there)." in markdown and "- B: odd rows." in markdown
    assert "mean of 2 tasks" in markdown and "does not compare" in markdown and "their card" in markdown
    held = json.loads(json.dumps(result().to_dict(), allow_nan=False))
    assert held["tasks"][1]["score"] is None and held["tasks"][0]["runs"][1]["score"] == 0.71
    assert result().seed_means == {0: pytest.approx(0.70), 1: pytest.approx(0.71)}


MINE = """
name = "mine"
title = "Mine"
procedure = "ours"

[quick]
epochs = 2
batch_size = 8
lr = []
seeds = [0, 1]

[[tasks]]
name = "second"
title = "Second"
kind = "label"
download = "nowhere"
train = ["animals.tsv"]
evaluate = { dev = "animals.tsv" }
start_from = "first"
metrics = ["accuracy", "f1"]

[[tasks]]
name = "first"
title = "First"
kind = "label"
download = "nowhere"
train = ["animals.tsv"]
evaluate = { dev = "animals.tsv" }
metrics = ["accuracy"]

[[tasks]]
name = "alike"
title = "Alike"
kind = "similarity"
download = "nowhere"
evaluate = { dev = "pairs.tsv" }
metrics = ["spearman"]

[[tasks]]
name = "gone"
title = "Gone"
kind = "label"
download = "the shop"
train = ["gone.tsv"]
evaluate = { dev = "gone.tsv" }
metrics = ["accuracy"]
"""


@pytest.fixture
def mine(tmp_path):
    """A suite of one's own with its data and a tiny pretrained model."""
    corpus = tiny_corpus(tmp_path / "corpus", documents=60)
    torch.manual_seed(0)
    save_model(
        tmp_path / "model",
        MaskedLM(EncoderConfig(vocab_size=corpus.vocab_size, **TINY_MODEL)),
        corpus.path / "tokenizer.json",
    )
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    lines = [f"{'the cat purrs' if i % 2 else 'the dog barks'} at night {i}\t{i % 2}" for i in range(40)]
    (tmp_path / "animals.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    pairs = ["the cat purrs\tthe cat purrs\t5", "the dog barks\ta bird sings\t1", "at night\tthe night\t3"]
    (tmp_path / "pairs.tsv").write_text("\n".join(["a\tb\tscore", *pairs]) + "\n", encoding="utf-8")
    return tmp_path


def test_a_suite_runs_what_has_files_and_nothing_twice(mine, monkeypatch):
    def run(**settings):
        return run_suite(mine / "mine.toml", mine / "model", mine, mine / "out", threads=1, **settings)

    found = run()
    assert [task.name for task in found.tasks] == ["second", "first", "alike"]
    assert [task.started_from for task in found.tasks] == ["first", "", ""]
    assert [(gone.name, gone.files, gone.download) for gone in found.missing] == [("gone", ("gone.tsv",), "the shop")]
    second = found.tasks[0]
    usual = default_lr(load_config(mine / "model"), FinetuneConfig(model="", out=""))
    assert {run.lr for run in second.runs} == {usual}
    assert [run.seed for run in second.runs] == [0, 1] and second.runs[0].scores["dev"]["accuracy"] > 0.9
    both = second.runs[0].scores["dev"]
    assert second.runs[0].score == pytest.approx((both["accuracy"] + both["f1"]) / 2)
    assert found.tasks[2].low <= found.tasks[2].score <= found.tasks[2].high and not found.tasks[2].runs
    held = json.loads((mine / "out" / "suite.json").read_text(encoding="utf-8"))
    assert held["tasks"][0]["procedure"]["epochs"] == 2 and "commit" in held["provenance"]
    assert "| Gone |" in (mine / "out" / "suite.md").read_text(encoding="utf-8")
    assert not [path for path in (mine / "out" / "second").iterdir() if path.is_dir()]

    def never(*args, **kwargs):
        raise AssertionError("ran again")

    monkeypatch.setattr("terrazzo.tasks.suites.run.run_fine_tuned", never)
    assert run().tasks == found.tasks
    with pytest.raises(AssertionError, match="ran again"):
        run(seeds=[5])
    with pytest.raises(AssertionError, match="ran again"):
        run(overrides={"first.epochs": 1})
    with pytest.raises(InputError, match="no task 'frist': did you mean 'first'"):
        run(overrides={"frist.epochs": 1})


def test_the_rate_is_chosen_on_rows_held_out_of_training(mine, monkeypatch):
    seen = []
    run = fine_tuned._Tuning.run

    def watched(self, rows, *args):
        seen.append(({row.where for row in rows.train}, {r.where for part in rows.evaluate.values() for r in part}))
        return run(self, rows, *args)

    monkeypatch.setattr(fine_tuned._Tuning, "run", watched)
    found = run_suite(
        mine / "mine.toml",
        mine / "model",
        mine,
        mine / "out",
        tasks=["first"],
        seeds=[0],
        learning_rates=[1e39, 1e-9, 5e-3],
        threads=1,
    )
    (task,) = found.tasks
    assert task.choice["0.005"] > task.choice["1e-09"] and task.runs[0].lr == 5e-3
    assert set(task.choice) == {"0.005", "1e-09"} and task.note == "training diverged at 1e+39"
    assert len(seen) == 4 and not seen[0][0] & seen[0][1] and seen[0] == seen[1] == seen[2]
    assert len(seen[3][0]) == 40 == len(seen[3][1])


def test_a_suite_without_any_file_or_head_says_so(mine):
    with pytest.raises(InputError, match=r"no task of suite mine has its files: Gone: gone.tsv \(the shop\)"):
        run_suite(mine / "mine.toml", mine / "model", mine, mine / "out", tasks=["gone"])
    with pytest.raises(InputError, match="profile 'fast'"):
        run_suite("glue", mine / "model", mine, mine / "out", profile="fast")
