"""One sentence in, a smaller model and its proof out. Times are made up, so that nothing depends on this machine."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
import torch

import terrazzo
from terrazzo.compression import candidates, cutting, pipeline
from terrazzo.compression.asked import Asked
from terrazzo.compression.goal import Goal
from terrazzo.compression.ground import Ground
from terrazzo.compression.latency import Curve, LatencyTable
from terrazzo.compression.means import Means
from terrazzo.compression.offers import GoalUnreachable, Offer, frontier, nearest
from terrazzo.compression.pipeline import Compression
from terrazzo.compression.plan import read_plan
from terrazzo.compression.proof import NotProved, prove, read_proof
from terrazzo.compression.recover import RecoverConfig
from terrazzo.compression.report import why_chosen
from terrazzo.compression.rows import read_split, split_rows
from terrazzo.compression.search import SearchOptions
from terrazzo.compression.sites import sites
from terrazzo.compression.solver import Unreachable
from terrazzo.compression.speed import Bench, Here
from terrazzo.compression.timing import Times, TooNoisy
from terrazzo.errors import InputError
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig
from terrazzo.runtime import choice
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.quantise import Unreached
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.task import Example, Span
from terrazzo.tasks.training import TaskWorkload
from terrazzo.testing import TINY_MODEL, log_metrics, tiny_task_folder
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, train

ANIMALS = ("cat", "dog", "bird")
THINGS = ("river", "engine", "bridge")


def examples(count, seed=0):
    draw = random.Random(seed)
    rows = []
    while len(rows) < count:
        word = draw.choice(ANIMALS + THINGS)
        tail = " ".join(
            draw.choice(("hums", "sings", "at night", "in the garden", "again", "until morning")) for _ in "ab"
        )
        rows.append((f"the {word} {tail} {draw.randint(0, 9999)}", "animal" if word in ANIMALS else "thing"))
    return rows


def write(file: Path, rows) -> Path:
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus):
    """A tiny fine-tuned model that is nearly always right, and files of rows."""
    folder = tmp_path_factory.mktemp("compress")
    rows = [Example(text=text, target=label) for text, label in examples(96, 1)]
    task = LabelTask.learn(rows)
    encoded = LabelledRows.encode(task, rows, corpus.tokenizer, 32)
    work = TaskWorkload(task=task, tokenizer=corpus.tokenizer, max_len=32, batch_size=16, train=encoded, dev=encoded)
    stage = Stage(
        model=Init(fields=TINY_MODEL),
        objective=SupervisedConfig(),
        sampling=Sampling(workers=0),
        optimizer=AdamWConfig(lr=1e-2),
        budget=Budget(steps=60),
    )
    run = RunConfig(data="", out=str(folder / "run"), stages=(stage,), device="cpu", precision="fp32", threads=1)
    train(run, workload=work, hooks=log_metrics)
    return (
        folder / "run",
        write(folder / "learn.jsonl", examples(240, 2)),
        write(folder / "held.jsonl", examples(900, 3)),
    )


class SimulatedBench(Bench):
    """Times follow from what a model keeps: 1 ms without any heads and units, the rest by their number."""

    noisy = False

    def __init__(self, subject, on):
        super().__init__(subject, on, machine=Machine(cpu=this_machine().cpu, instructions=(), cores=2))

    def milliseconds(self, config):
        shares = [
            site.size(config) / site.size(self.subject.encoder.config) for site in sites(self.subject.encoder.config)
        ]
        return 1.0 + 9.0 * sum(shares) / len(shares)

    def time(self, runtimes):
        if self.noisy:
            raise TooNoisy("the batch", 0.2, 0.05, 60)
        slower = {"torch": 1.0, "openvino": 1.2, "onnx": 1.3, "plain PyTorch": 2.0, "small": 1.0}
        dense = self.subject.encoder.config
        ms = {name: slower[name] * self.milliseconds(getattr(one, "config", dense)) for name, one in runtimes.items()}
        return Times(ms=ms, spread=0.01, rounds=6)

    def table(self, runtime, precision):
        shape = self.subject.encoder.config.replace(dropout=0.0, attention_dropout=0.0, init="normal")
        layers, each = tuple(range(shape.depth)), 9.0 / (2 * shape.depth)
        curves = tuple(
            Curve(
                kind=site.kind,
                layers=layers,
                sizes=tuple(range(site.size(shape) + 1)),
                ms=tuple(each * size / site.size(shape) for size in range(site.size(shape) + 1)),
            )
            for site in sites(shape)[:2]
        )
        return LatencyTable(
            shape=shape,
            conditions=self.conditions(runtime, precision),
            remainder_ms=1.0,
            curves=curves,
            spread=0.0,
            machine=self.machine.key,
            packages={},
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(choice, "SECONDS", 0.01)


def compress(made, out, goal, bench=SimulatedBench, **more):
    model, data, held = made
    lines = []
    asked = Asked(model=str(model), data=str(data), held_out=str(held), goal=goal, out=Path(out), **more)
    return Compression(asked, lines.append, Ground(asked, bench)).run(dry_run=False), lines


def test_a_goal_is_reached_and_its_proof_is_what_anyone_would_measure(made, tmp_path) -> None:
    done, lines = compress(made, tmp_path / "out", Goal(faster=2.5, drop=5.0))
    proof = read_proof(tmp_path / "out")
    assert proof == done.proof
    assert (
        proof.proved
        and proof.speeds.faster >= 2.5
        and proof.speeds.faster_plain == pytest.approx(2 * proof.speeds.faster)
    )
    small = terrazzo.load(tmp_path / "out")
    shares = [site.size(small.config) / site.size(terrazzo.load(made[0]).config) for site in sites(small.config)]
    assert proof.speeds.ms == pytest.approx(1 + 9 * sum(shares) / len(shares))
    task = LabelTask(classes=("animal", "thing"))
    rows = [
        Example(text=json.loads(line)["text"], target=json.loads(line)["label"])
        for line in made[2].read_text().splitlines()
    ]
    split = split_rows(task, [Example(text=t, target=label) for t, label in examples(240, 2)], rows, 5.0, 0)
    right = [
        sum(
            said.label == row.target
            for said, row in zip(model.predict([r.text for r in split.proof]), split.proof, strict=True)
        )
        for model in (terrazzo.load(made[0]), small)
    ]
    assert proof.quality.rows == len(split.proof)
    assert proof.quality.drop == pytest.approx(100 * (right[0] - right[1]) / len(split.proof), abs=1e-9)
    assert proof.size.bytes == sum(
        (tmp_path / "out" / n).stat().st_size for n in ("model.safetensors", "head.safetensors")
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{proof.speeds.faster:.2f}" in page and "Frontier" in page
    assert not list(tmp_path.glob(".out.work")) and any("prove" in line for line in lines)
    again = prove(tmp_path / "out", here=True, bench=SimulatedBench)
    assert not again.differing and again.now.proved


def test_texts_without_answers_are_answered_by_the_dense_model_and_judge_nothing(made, tmp_path) -> None:
    model, data, held = made
    unseen = [(text, "") for text, _ in examples(50, 11)]
    texts = tmp_path / "texts.jsonl"
    seen = [json.loads(line)["text"] for file in (data, held) for line in file.read_text().splitlines()[:40]]
    rows = [text for text, _ in unseen] + seen + seen[:3]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    goal, out = Goal(faster=2, drop=5.0), tmp_path / "out"
    asked = Asked(model=str(model), data=str(data), held_out=str(held), texts=str(texts), goal=goal, out=out)
    ground = Ground(asked, SimulatedBench)
    more = ground.subject.lessons.examples[len(ground.subject.learn.examples) :]
    assert {row.text for row in more} == {text for text, _ in unseen}
    said = terrazzo.load(model).predict([row.text for row in more])
    assert [row.target for row in more] == [one.label for one in said]
    without = Ground(dataclasses.replace(asked, texts=None), SimulatedBench)
    assert without.split.proof == ground.split.proof and without.subject.lessons is without.subject.learn
    assert without.split.whole_fingerprint != ground.split.whole_fingerprint
    with pytest.raises(InputError, match="rows without answers are of use to label"):
        read_split(SpanTask(), data, held, 5.0, 0, texts=texts)
    with pytest.raises(InputError, match=r"held.jsonl: all 900 rows stand among"):
        Ground(dataclasses.replace(asked, texts=str(held)), SimulatedBench)


def test_texts_of_another_task_are_refused_before_anything_is_made(tmp_path) -> None:
    task = MultiTask(problems=tuple(Problem(name=name, classes=("a", "b")) for name in "xy"))
    model = tiny_task_folder(tmp_path / "model", task)

    def file(name, problem):
        lines = [{"text": f"{name} {number}", "label": "ab"[number % 2], "problem": problem} for number in range(900)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    asked = Asked(model=str(model), data=file("rows.jsonl", "x"), goal=Goal(faster=2, drop=5.0), out=tmp_path / "out")
    lessons = Ground(dataclasses.replace(asked, texts=file("more.jsonl", "y")), SimulatedBench).subject.lessons
    assert {row.problem for row in lessons.examples} == {"x", "y"} and len(lessons.examples) == 450 + 900
    with pytest.raises(InputError, match=r"--texts .*strange.jsonl: 900 of 900 rows .*problem 'z' is not one"):
        Ground(dataclasses.replace(asked, texts=file("strange.jsonl", "z")), SimulatedBench)


def test_questions_about_one_context_stay_together() -> None:
    rows = [
        Example(text=f"context {number}", other=f"question {q}", target=(Span(start=0, end=7, label="context"),))
        for number in range(200)
        for q in range(5)
    ]
    task = SpanTask()
    for held_out in (None, rows[:700]):
        split = split_rows(task, rows, held_out, 5.0, 0)
        parts = [{row.text for row in part} for part in (split.learn, split.choose, split.proof)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 200
        assert len(split.choose) + len(split.proof) == (500 if held_out is None else 700)


def test_pairs_without_any_class_are_no_questions() -> None:
    rows = [Example(text="one premise", other=f"hypothesis {number}", target=()) for number in range(800)]
    task = LabelTask(kind="pair", classes=("a", "b"), several=True)
    learned = [Example(text=row.text, other=row.other, target=("a",)) for row in rows]
    split = split_rows(task, learned, rows[:600], 5.0, 0)
    assert len(split.choose) + len(split.proof) == 600 and len(split.learn) == 200
    assert not split.beside([dataclasses.replace(row, target=None) for row in rows])


def test_rows_of_the_proof_are_seen_by_nothing_else(made) -> None:
    rows = [Example(text=text, target=label) for text, label in examples(3000, 7)]
    split = split_rows(LabelTask(classes=("animal", "thing")), rows, None, 5.0, 3)
    parts = [{row.text for row in part} for part in (split.learn, split.choose, split.proof)]
    assert sum(map(len, parts)) == len(set.union(*parts)) and all(parts)
    assert split == split_rows(LabelTask(classes=("animal", "thing")), rows, None, 5.0, 3)


def test_a_goal_out_of_reach_says_what_was_measured(made, tmp_path) -> None:
    with pytest.raises(GoalUnreachable, match="nearest offers") as caught:
        compress(made, tmp_path / "out", Goal(faster=20, drop=5.0))
    assert caught.value.offers and not (tmp_path / "out").exists()
    assert (tmp_path / ".out.work" / "report.html").is_file()


def test_an_interrupted_search_goes_on(made, tmp_path, monkeypatch) -> None:
    def stopped(*_, **__):
        raise KeyboardInterrupt

    goal = Goal(faster=5, drop=30.0)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    monkeypatch.setattr(cutting, "recover", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress(made, tmp_path / "out", goal)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(choice, "SECONDS", 0.01)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    made_again = []
    monkeypatch.setattr(pipeline.Workshop, "save", lambda *args: made_again.append(args) or SAVE(*args))
    done, _ = compress(made, tmp_path / "out", goal)
    assert done.proof.speeds.faster >= 5 and len(made_again) == 1  # what was trained; the others lay there


def test_what_goes_on_chooses_by_the_times_that_it_began_with(made, tmp_path, monkeypatch) -> None:
    def stopped(*_, **__):
        raise KeyboardInterrupt

    class Drifting(SimulatedBench):
        def table(self, runtime, precision):
            table = super().table(runtime, precision)
            hours.append(1)
            return dataclasses.replace(table, remainder_ms=table.remainder_ms * (1 + 0.03 * len(hours)))

    hours, searches = [], []
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    monkeypatch.setattr(cutting, "recover", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compress(made, tmp_path / "out", Goal(faster=5, drop=30.0), bench=Drifting)
        searches.append(sorted(file.name for file in (tmp_path / ".out.work").glob("*/search-*")))
    assert searches[0] == searches[1] and len(hours) == 1


SAVE = pipeline.Workshop.save


def test_plans_that_run_slower_than_predicted_are_cut_further(made, tmp_path) -> None:
    class Slower(SimulatedBench):
        def milliseconds(self, config):
            predicted = super().milliseconds(config)
            return predicted if predicted == 10.0 else 1.1 * predicted  # only what was cut

    done, lines = compress(made, tmp_path / "out", Goal(faster=2, drop=30.0), bench=Slower)
    chosen = [float(line.split("predicted ")[1].split("x")[0]) for line in lines if line.startswith("choose")]
    assert len(chosen) > 1 and chosen == sorted(chosen) and chosen[0] < 2.2 < chosen[-1]
    assert done.proof.proved and done.proof.speeds.faster >= 2 * cutting._SPARE


QUICK = Means(
    search=SearchOptions(starts=2, failures=1, evaluations=4),
    loss_rows=50,
    calibration=64,
    recover=RecoverConfig(epochs=0.5),
    gradual=1.6,
)


def test_a_long_way_is_gone_in_rounds(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(pipeline.MEANS, "hours", QUICK)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    done, lines = compress(made, tmp_path / "out", Goal(faster=3, drop=49.0), effort="hours")
    said = [line for line in lines if "round" in line]
    assert (
        len(said) >= 2
        and said[-1].split(":")[0].endswith(f"round {len(said)} of {len(said)}")
        and len(set(said)) == len(said)
    )
    assert done.proof.proved and done.proof.speeds.faster >= 3


def test_where_no_round_has_anything_to_take_all_is_trained_at_once(made, tmp_path, monkeypatch) -> None:
    def plan(self, ms):
        if self.cutter.log_rounds:
            raise Unreachable(-0.01, 0.0)
        return real(self, ms)

    real = cutting.Round.plan
    monkeypatch.setitem(pipeline.MEANS, "hours", QUICK)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    monkeypatch.setattr(cutting.Cutter, "log_rounds", False, raising=False)
    shoot = cutting.Cutter.one_shot

    def one_shot(self, *goal):
        shot, self.log_rounds = shoot(self, *goal), True
        return shot

    monkeypatch.setattr(cutting.Cutter, "one_shot", one_shot)
    monkeypatch.setattr(cutting.Round, "plan", plan)
    done, lines = compress(made, tmp_path / "out", Goal(faster=3, drop=49.0), effort="hours")
    assert done.proof.proved and any("in one round" in line for line in lines)


def test_few_bits_that_learned_back_say_so(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(pipeline.MEANS, "hours", QUICK)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    monkeypatch.setattr(pipeline, "surest", lambda goal, some, *_: some[-1])
    done, _ = compress(made, tmp_path / "out", Goal(smaller=5, drop=49.0), effort="hours")
    assert [offer.trained for offer in done.offers] == [False, True]
    assert read_plan(done.folder / "plan.json").trained


def test_as_small_as_asked_by_few_bits(made, tmp_path) -> None:
    done, _ = compress(made, tmp_path / "out", Goal(smaller=5, drop=10.0))
    stored = sum((tmp_path / "out" / name).stat().st_size for name in ("model.packed.safetensors", "head.safetensors"))
    dense = sum(parameter.numel() for parameter in terrazzo.load(made[0]).predictor.model.parameters())
    assert not read_plan(tmp_path / "out" / "plan.json").trained
    assert (
        done.proof.proved
        and 4 * dense / stored == pytest.approx(done.proof.size.smaller)
        and done.proof.size.smaller >= 5
    )
    texts = [text for text, _ in examples(64, 3)]
    dense_said, said = (terrazzo.load(folder).predict(texts) for folder in (made[0], tmp_path / "out"))
    assert sum(a.label == b.label for a, b in zip(dense_said, said, strict=True)) >= 60
    with pytest.raises(InputError, match="few bits"):
        compress((tmp_path / "out", *made[1:]), tmp_path / "again", Goal(smaller=5, drop=10.0))


def test_a_noisy_machine_gets_no_proof_of_speed(made, tmp_path, monkeypatch) -> None:
    real = pipeline.prove_folder

    def in_noise(folder, subject, bench, *rest):
        bench.noisy = True
        return real(folder, subject, bench, *rest)

    monkeypatch.setattr(pipeline, "prove_folder", in_noise)
    with pytest.raises(NotProved, match="too noisy"):
        compress(made, tmp_path / "out", Goal(faster=2, drop=5.0))
    assert read_proof(tmp_path / "out").speeds is None
    quiet = prove(tmp_path / "out", here=True, bench=SimulatedBench)  # what was withheld is written once it is known
    assert quiet.now.proved and read_proof(tmp_path / "out") == quiet.now
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Proved." in page and "Not proved" not in page and "ZipLM, fp32, one-shot" in page
    with pytest.raises(NotProved, match="out stays as it was"):
        compress(made, tmp_path / "out", Goal(faster=2.5, drop=5.0))
    assert read_proof(tmp_path / "out") == quiet.now and not read_proof(tmp_path / "out-unproved").proved


def test_a_model_that_int8_is_far_from_is_cut_in_fp32(made, tmp_path, monkeypatch) -> None:
    real = candidates.export_into

    def export_into(out, source, texts, names, precision, *rest):
        if precision == "int8":
            raise Unreached("int8 does not reach a cosine of 0.97")
        return real(out, source, texts, names, precision, *rest)

    monkeypatch.setattr(candidates, "export_into", export_into)
    monkeypatch.setattr(pipeline.Compression, "precision", "int8", raising=False)
    done, lines = compress(made, tmp_path / "out", Goal(faster=2, drop=5.0))
    assert done.proof.proved and {offer.precision for offer in done.offers} == {"fp32"}
    assert sum("fp32 instead" in line for line in lines) == 1 and "int8" not in done.offers[-1].name


def test_a_dry_run_makes_nothing_and_measures_what_it_needs(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(SimulatedBench, "dense", {"torch": None, "openvino": None, "plain PyTorch": None})
    model, data, held = map(str, made)

    def said(goal):
        lines = []
        asked = Asked(model=model, data=data, held_out=held, goal=goal, out=tmp_path / "out")
        assert Compression(asked, lines.append, Ground(asked, SimulatedBench)).run(dry_run=True) is None
        return "\n".join(lines)

    near = said(Goal(faster=4, drop=5.0))
    assert "about 17% of them can stay" in near and "no int8 here (this CPU" in near
    assert "out of reach" in said(Goal(faster=11, drop=5.0))
    monkeypatch.setattr(SimulatedBench, "table", None)  # sizes need no times of parts
    assert "within reach" in said(Goal(smaller=5, drop=5.0))
    assert not list(tmp_path.iterdir())


def test_work_on_other_rows_or_with_another_seed_is_other_work(made, tmp_path) -> None:
    model, data, held = made

    def folder(goal=None, **more):
        goal = goal or Goal(faster=3, drop=5.0)
        values = {"model": str(model), "data": str(data), "held_out": str(held), "out": tmp_path / "out", "goal": goal}
        asked = Asked(**(values | more))
        return Compression(asked, print, Ground(asked, SimulatedBench)).place.folder

    other = write(tmp_path / "other.jsonl", examples(240, 8))
    found = [
        folder(),
        folder(data=str(other)),
        folder(seed=1),
        folder(effort="hours"),
        folder(Goal(faster=2, drop=5.0)),
    ]
    assert len(set(found)) == len(found) and folder() == found[0]


def test_a_proof_is_of_one_machine_one_model_and_one_set_of_rows(made, tmp_path) -> None:
    compress(made, tmp_path / "out", Goal(faster=2, drop=5.0))
    with pytest.raises(InputError, match="--here"):
        prove(tmp_path / "out", bench=SimulatedBench)
    with pytest.raises(InputError, match="not those of"):
        prove(tmp_path / "out", held_out=write(tmp_path / "other.jsonl", examples(900, 9)), here=True)
    proof = tmp_path / "out" / "proof.json"
    there = proof.read_text()
    for moved, mend in ((made[0], "--model"), (made[1], "--data"), (made[2], "--held-out")):
        proof.write_text(there.replace(f'{moved}"', f'{moved}.gone"'))
        with pytest.raises(InputError, match=f"no more where .* {mend}"):
            prove(tmp_path / "out", here=True, bench=SimulatedBench)
    proof.write_text(there)
    weights = tmp_path / "out" / "head.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-64:] = bytes(64)
    weights.write_bytes(bytes(blob))
    with pytest.raises(InputError, match=re.escape("head.safetensors")):
        prove(tmp_path / "out", here=True, bench=SimulatedBench)


def test_what_cannot_be_compressed_is_refused(made, tmp_path) -> None:
    model, data, held = made
    few = write(tmp_path / "few.jsonl", examples(300, 4))
    with pytest.raises(InputError, match="too few to prove a drop of at most 1 points.*542"):
        compress((model, data, few), tmp_path / "out", Goal(faster=2, drop=1.0))
    with pytest.raises(InputError, match="cannot be proved"):
        compress(made, tmp_path / "out", Goal(faster=2, drop=0.0))
    other = write(
        tmp_path / "other.jsonl",
        [(text, "thing" if label == "animal" else "animal") for text, label in examples(900, 5)],
    )
    with pytest.raises(InputError, match="of another task"):
        compress((model, data, other), tmp_path / "out", Goal(faster=2, drop=5.0))
    strange = write(tmp_path / "strange.jsonl", [(text, "verb") for text, _ in examples(900, 5)])
    with pytest.raises(InputError, match="none of this model's task"):
        compress((model, data, strange), tmp_path / "out", Goal(faster=2, drop=5.0))
    compress(made, tmp_path / "small", Goal(faster=2.5, drop=5.0))
    with pytest.raises(InputError, match="compressed already"):
        compress((tmp_path / "small", data, held), tmp_path / "out", Goal(faster=2, drop=5.0))


def offer(name, faster, smaller, drop):
    return Offer(
        name=name,
        runtime="torch",
        precision="fp32",
        ms=1 / faster,
        faster=faster,
        bytes=1,
        smaller=smaller,
        metric=90 - drop,
        drop=drop,
        drop_high=drop + 0.5,
    )


def test_the_frontier_holds_what_nothing_beats() -> None:
    some = [offer("a", 2, 4, 0.1), offer("b", 2, 4, 0.5), offer("c", 5, 5, 2.0), offer("d", 4, 4, 3.0)]
    assert [one.name for one in frontier(some)] == ["a", "c"]
    assert [one.name for one in nearest(Goal(faster=4, drop=1.0), some)] == ["a", "c"]


def test_the_page_says_why_one_was_chosen() -> None:
    goal, slow, lossy = Goal(faster=4, drop=1.0), offer("int8", 2, 4, 0.1), offer("cut", 5, 5, 2.0)
    trained = offer("trained", 5, 5, 0.3)
    assert "trained, the last one, which alone reaches the goal; at most 0.80" in why_chosen(goal, [lossy, trained])
    assert "of 2 that reach the goal the likeliest" in why_chosen(goal, [slow, offer("once", 5, 5, 0.9), trained])
    assert "misses the goal by less than times differ" in why_chosen(goal, [slow, offer("once", 3.9, 5, 0.9)])


def test_threads_beyond_the_machine_are_refused(made) -> None:
    with pytest.raises(InputError, match="threads 99"):
        compress(made, "out", Goal(faster=2, drop=5.0), on=Here(threads=99))


torch.set_num_threads(1)
