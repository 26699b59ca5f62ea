"""Fine-tunings: runs over rates and seeds, what is kept, what goes on, what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from terrazzo import load
from terrazzo.checkpoint import save_model
from terrazzo.cli.tables import show_finetune
from terrazzo.errors import DivergedError, InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks import Example
from terrazzo.tasks import finetune as module
from terrazzo.tasks.adapters import LoraConfig
from terrazzo.tasks.finetune import finetune
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr, run_config
from terrazzo.tasks.finetune_record import FailedRun, RunScore, result_of
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.preparation import hold_out
from terrazzo.tasks.report import write_finetune_report
from terrazzo.tasks.report.record import FinetuneRecord
from terrazzo.tasks.seeds import spread_of
from terrazzo.testing import TINY_MODEL, tiny_texts
from terrazzo.train import Budget
from terrazzo.train.metrics import read_metrics

ROWS = [
    Example(text=text.split(".")[0], target="animal" if text[:5] in ("the c", "the d", "a bir") else "thing")
    for text in tiny_texts(70)
]
TRAIN, DEV = ROWS[:50], ROWS[50:]


@pytest.fixture(scope="module")
def encoder(corpus, tmp_path_factory):
    """A tiny model folder, never pretrained."""
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=corpus.vocab_size, **{**TINY_MODEL, "depth": 1, "dropout": 0.1})
    folder = tmp_path_factory.mktemp("encoder") / "model"
    return save_model(folder, Encoder(config), corpus.path / "tokenizer.json")


@pytest.fixture
def asked(encoder, tmp_path):
    """A fine-tuning of two rates and two seeds."""
    return FinetuneConfig(
        model=str(encoder), out=str(tmp_path / "out"), lr=(1e-6, 1e-2), seeds=2, epochs=5, batch_size=10, threads=1
    )


def run(config, **more):
    heard = []
    result = finetune(config, train=TRAIN, eval=DEV, on_run=heard.append, **more)
    return result, heard


def weights(folder):
    return load_task_model(folder).model.state_dict()


def assert_same_weights(one, other):
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=0, atol=0)


def test_the_best_seed_of_the_best_rate_is_kept_and_the_scores_of_all(asked, tmp_path):
    result, heard = run(asked)
    assert [(score.lr, score.seed) for score in heard] == [(1e-6, 0), (1e-6, 1), (1e-2, 0), (1e-2, 1)]
    assert result.lr == 1e-2 and result.over_seeds.mean == sum(s.score for s in heard[2:]) / 2
    assert result.score == max(s.score for s in heard[2:]) > 0.7
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["lr"] == 1e-2 and written["mean"] == result.over_seeds.mean and len(written["runs"]) == 4
    said = [answer.label for answer in load(tmp_path / "out").predict([row.text for row in DEV])]
    assert sum(label == row.target for label, row in zip(said, DEV, strict=True)) / len(DEV) == result.score
    left = {path.name for path in (tmp_path / "out" / "runs" / "lr-0.01-seed-0").iterdir()} - {".lock"}
    assert left == {"run.json", "metrics.jsonl", "result.json"}

    again = dataclasses.replace(asked, out=str(tmp_path / "again"), lr=(1e-2,), keep_runs=True)
    twice, _ = run(again)
    assert_same_weights(result.model, twice.model)
    assert_same_weights(twice.model, tmp_path / "again" / "runs" / f"lr-0.01-seed-{twice.seed}" / "model")


def test_the_same_command_goes_on_and_more_seeds_add_runs(asked, tmp_path, monkeypatch):
    class Stop:
        def __init__(self, run):
            self.armed = run.name == "lr-0.01-seed-1"

        def on_step(self, line):
            if self.armed and line["step"] == 12:
                os.kill(os.getpid(), signal.SIGTERM)

        def __getattr__(self, name):
            return lambda *arguments: None

    asked = dataclasses.replace(asked, lr=(1e-2,), epochs=3)
    whole, _ = run(dataclasses.replace(asked, out=str(tmp_path / "whole")))
    stopped, heard = run(asked, hooks=lambda _: lambda folder: [*module.log_metrics(folder), Stop(folder)])
    assert stopped is None and len(heard) == 1
    result, _ = run(asked)
    assert [s.score for s in result.runs] == [s.score for s in whole.runs]
    assert_same_weights(result.model, whole.model)

    begun = []
    monkeypatch.setattr(module, "train_run", counted(module.train_run, begun))
    run(asked)
    assert begun == []
    more, _ = run(dataclasses.replace(asked, seeds=3))
    assert begun == ["lr-0.01-seed-2"]
    assert more.over_seeds.mean == pytest.approx(sum(s.score for s in more.runs) / 3)


def counted(train, begun):
    def wrapped(config, **more):
        begun.append(os.path.basename(config.out))
        return train(config, **more)

    return wrapped


def test_a_run_that_diverges_counts_as_failed_and_the_others_go_on(asked, tmp_path, monkeypatch):
    asked = dataclasses.replace(asked, lr=(1e39, 1e-2), seeds=1, epochs=1)
    result, heard = run(asked)
    assert [(outcome.lr, isinstance(outcome, FailedRun)) for outcome in heard] == [(1e39, True), (1e-2, False)]
    assert result.lr == 1e-2 and list(result.rates) == [1e-2] and result.failed == (heard[0],)
    (failed,) = json.loads((tmp_path / "out" / "result.json").read_text())["failed"]
    assert failed["lr"] == 1e39 and failed["error"].startswith("step ")
    console = Console(width=160, record=True, file=io.StringIO())
    show_finetune(result, console)
    shown, page = console.export_text(), write_finetune_report(tmp_path / "out").read_text()
    assert re.search(r"^1e\+39 +– +– +– +failed", shown, re.M) and failed["error"] in shown and failed["error"] in page

    begun = []
    monkeypatch.setattr(module, "train_run", counted(module.train_run, begun))
    with pytest.raises(DivergedError, match=r"every run diverged; the first, at .* 1e\+39 with seed 0.*--lr"):
        run(dataclasses.replace(asked, lr=(1e39,)))
    assert begun == []


def test_a_rate_that_failed_once_is_not_chosen_for_its_other_seeds(asked):
    def score(lr, value):
        return RunScore(lr=lr, seed=0, metric="accuracy", score=value, metrics={}, step=1, seconds=1.0)

    failed = FailedRun(lr=1e-2, seed=1, error="step 3: the loss is nan", seconds=1.0)
    runs = [score(1e-2, 0.9), score(1e-3, 0.8)]
    assert result_of(asked, runs, [failed], 3.0).lr == 1e-3
    assert result_of(asked, runs, [failed, dataclasses.replace(failed, lr=1e-3)], 3.0).lr == 1e-2


def test_a_model_whose_weights_are_gone_is_trained_again(asked, tmp_path):
    one = dataclasses.replace(asked, lr=(1e-2,))
    first, _ = run(one)
    before = weights(first.model)
    shutil.rmtree(first.model)
    second, _ = run(one)
    assert second.seed == first.seed
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(second.model).items())


def test_an_end_while_a_run_is_deleted_leaves_the_model_whole(asked, monkeypatch):
    asked = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1)
    out = Path(asked.out) / "model"

    def begun(folder, **more):
        weights = Path(folder, "model.safetensors")
        if weights.is_file() and weights.parts[-4] == "runs" and out.is_dir():
            weights.unlink()
            raise KeyboardInterrupt
        rmtree(folder, **more)

    rmtree = shutil.rmtree
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", begun)
        run(asked)
    before = weights(asked.out)
    result, _ = run(asked)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(result.model).items())
    assert {path.name for path in next((result.model.parent / "runs").iterdir()).iterdir()} - {".lock"} == {
        "run.json",
        "metrics.jsonl",
        "result.json",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2.0}, "begun with epochs = 1.0, not 2.0"),
        ({"loss": {"focal_gamma": 2.0}}, "begun with loss.focal_gamma = 0.0, not 2.0"),
        ({"rows": ROWS[:40]}, "train: other rows than"),
    ],
)
def test_another_fine_tuning_in_the_same_folder_is_refused(asked, change, message):
    short = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1.0)
    run(short)
    rows = change.pop("rows", TRAIN)
    other = (
        FinetuneConfig(**{**vars(short), **change})
        if "loss" not in change
        else dataclasses.replace(short, loss=dataclasses.replace(short.loss, **change["loss"]))
    )
    with pytest.raises(InputError, match=message):
        finetune(other, train=rows, eval=DEV)


def test_rows_come_from_files_and_a_tenth_is_held_out(encoder, tmp_path):
    lines = [json.dumps({"text": row.text, "mood": row.target}) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    fields = {"train": str(tmp_path / "rows.jsonl"), "fields": {"label": "mood"}, "seeds": 1, "epochs": 1, "threads": 1}
    config = FinetuneConfig(model=str(encoder), out=str(tmp_path / "out"), **fields)
    told = []
    assert finetune(config, on_understood=told.append) is not None
    assert told[0].train.rows + told[0].dev.rows == len(ROWS) and told[0].dev.rows > 0
    train, held = hold_out(ROWS)
    assert not {row.text for row in train} & {row.text for row in held} and len(train) + len(held) == len(ROWS)
    assert (train, held) == hold_out(ROWS)


def test_a_training_row_without_text_is_left_out_and_a_scoring_one_is_wrong(asked):
    empty = Example(text="", target="thing", where="rows.jsonl, line 3")
    config, told = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1), []
    result = finetune(config, train=[*TRAIN, empty], eval=[*DEV, empty], on_understood=told.append)
    assert told[0].train.bad == 1 and "rows.jsonl, line 3" in " ".join(told[0].warnings)
    said = load(result.model).predict([row.text for row in DEV])
    right = sum(answer.label == row.target for answer, row in zip(said, DEV, strict=True))
    assert result.score == pytest.approx(right / (len(DEV) + 1))


def test_seconds_are_shared_by_the_runs(asked, tmp_path):
    budget = dataclasses.replace(asked, lr=(1e-3,), budget=Budget(seconds=3.0))
    result, _ = run(budget)
    assert sum(score.seconds for score in result.runs) == pytest.approx(3.0, abs=1.2)
    records = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*/run.json")]
    shares = [record["config"]["stages"][0]["budget"]["seconds"] for record in records]
    assert len(shares) == 2 and sum(shares) < 3.0
    lines = read_metrics(tmp_path / "out" / "runs" / "lr-0.001-seed-0" / "metrics.jsonl")
    assert max(line.get("progress", 0) for line in lines) == 1


def test_lora_is_merged_and_a_frozen_encoder_stays(asked, encoder, tmp_path):
    plain = load(encoder).network.state_dict()
    for name, fields in (("lora", {"lora": LoraConfig(rank=2)}), ("frozen", {"freeze": "encoder"})):
        config = dataclasses.replace(asked, out=str(tmp_path / name), lr=(1e-2,), seeds=1, **fields)
        result, _ = run(config)
        after = load_task_model(result.model).model.encoder.state_dict()
        assert after.keys() == plain.keys()
        changed = {key for key, tensor in after.items() if not torch.equal(tensor, plain[key])}
        assert all("attention" in key for key in changed) and bool(changed) == (name == "lora")


def test_a_problem_taught_later_leaves_the_answers_of_the_others_to_the_bit(asked, tmp_path):
    def problem(name, rows):
        return [dataclasses.replace(row, problem=name, target=f"{name} {row.target}") for row in rows]

    asked = dataclasses.replace(asked, task="multi", lr=(1e-2,), seeds=1, epochs=1)
    before = finetune(asked, train=problem("one", TRAIN), eval=problem("one", DEV))
    later = dataclasses.replace(asked, model=str(before.model), out=str(tmp_path / "later"), freeze="encoder")
    after = finetune(later, train=problem("two", TRAIN), eval=problem("two", DEV))
    both, asking = load(after.model), [{"text": row.text, "problem": "one"} for row in DEV]
    assert both.predict(asking) == load(before.model).predict(asking)
    said = both.predict([{"text": row.text, "problem": "two"} for row in DEV])
    right = sum(answer.label == f"two {row.target}" for answer, row in zip(said, DEV, strict=True))
    assert right / len(DEV) == after.score


def test_the_defaults_depend_on_the_model(asked):
    wide, thin = (EncoderConfig(vocab_size=9, width=width, num_heads=2) for width in (768, 128))
    assert default_lr(wide, asked) == 5e-5 and default_lr(thin, asked) == 7e-4
    assert default_lr(wide, dataclasses.replace(asked, freeze="encoder")) == 5e-4
    for steps, last in ((1, 1.0), (2, 0.0)):
        (stage,) = run_config(asked, 100, 1e-3, 4, "out", Budget(steps=steps)).stages
        assert stage.schedules["lr"](1.0) == last
    config = run_config(dataclasses.replace(asked, evals_per_epoch=2), 100, 1e-3, 4, "out", Budget(steps=20))
    assert config.eval_every == 5 and config.seed == 4
    group = config.stages[0].optimizer
    assert (group.lr, group.weight_decay, group.decouple_lr, group.decay_norm_and_bias) == (1e-3, 0.01, False, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "labels"}, "did you mean 'label'"),
        ({"lr": (1e-3, 1e-3)}, "names a rate twice"),
        ({"lr": (0.0,)}, "lr must be positive"),
        ({"lora": LoraConfig(), "freeze": "encoder"}, "drop one"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_what_cannot_be_asked_for(fields, message):
    with pytest.raises(InputError, match=message):
        FinetuneConfig(model="m", out="o", **fields)


def test_other_weights_under_the_same_name_are_refused(asked, encoder, tmp_path):
    moved = dataclasses.replace(asked, model=str(tmp_path / "moved"), lr=(1e-2,), seeds=1, epochs=1)
    shutil.copytree(encoder, moved.model)
    run(moved)
    torch.manual_seed(1)
    save_model(moved.model, Encoder(load(encoder).config), encoder / "tokenizer.json")
    with pytest.raises(InputError, match="moved has changed since"):
        run(dataclasses.replace(moved, seeds=2))


def test_damaged_records_are_named_and_a_model_in_part_is_made_again(asked, tmp_path):
    asked, out = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1), tmp_path / "out"
    result, _ = run(asked)
    before = weights(result.model)
    (out / "model" / "config.json").unlink()
    run(asked)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(result.model).items())
    for name, mend in (("result.json", "delete it"), ("finetune.json", "choose another --out")):
        (out / name).write_text('{"format": "mine"}')
        with pytest.raises(InputError, match=f"{name}: format is 'mine'.*{mend}"):
            run(asked)
        with pytest.raises(InputError, match=f"{name}: format is 'mine'"):
            FinetuneRecord.read(out)
        (out / name).unlink()


def test_other_options_are_refused_before_the_rows_are_read(asked, tmp_path, monkeypatch):
    short = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1.0)
    run(short)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("the rows are read"))
    for changed, message in (({"epochs": 2.0}, "begun with epochs"), ({"out": str(tmp_path / "taken")}, "other files")):
        with pytest.raises(InputError, match=message):
            finetune(dataclasses.replace(short, **changed), train=TRAIN, eval=DEV)


def test_a_folder_with_other_files_is_left_alone(asked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run(asked)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_loss_that_the_task_does_not_take_is_refused_before_anything_is_made(asked, tmp_path):
    weighted = dataclasses.replace(asked, loss=SupervisedConfig(class_weights={"animals": 2.0}))
    with pytest.raises(InputError, match="'animals' is not a class: did you mean 'animal'"):
        run(weighted)
    assert not (tmp_path / "out").exists()


def test_scoring_rows_of_one_class_score_by_what_has_a_value_there(asked, tmp_path):
    asked, lone = dataclasses.replace(asked, lr=(1e-2,), seeds=1, epochs=1), [r for r in DEV if r.target == "thing"]
    result = finetune(asked, train=TRAIN, eval=lone)
    assert "auroc" not in result.runs[0].metrics and "f1" in result.runs[0].metrics
    ranked = dataclasses.replace(asked, out=str(tmp_path / "ranked"), options={"metric": "auroc"})
    with pytest.raises(InputError, match=rf"eval: auroc has no value on these {len(lone)} rows"):
        finetune(ranked, train=TRAIN, eval=lone)
    assert not (tmp_path / "ranked").exists()


def test_intervals_over_seeds_are_students():
    scipy = pytest.importorskip("scipy.stats")
    for count in (2, 3, 5, 12, 31):
        scores = [0.5 + 0.01 * (i % 4) for i in range(count)]
        spread = spread_of(scores)
        low, high = scipy.t.interval(0.95, count - 1, spread.mean, spread.std / count**0.5)
        assert (spread.low, spread.high) == pytest.approx((low, high), abs=1e-4)
    assert spread_of([0.5]).low is None
