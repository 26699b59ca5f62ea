"""What rows can tell, and what they cannot, is what a proof says."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from terrazzo.compression.candidates import Candidate, surest
from terrazzo.compression.goal import Goal
from terrazzo.compression.offers import Offer
from terrazzo.compression.pipeline import Compression
from terrazzo.compression.proof_file import Proof, Quality, Size, Speeds, unproved
from terrazzo.compression.report import write_report
from terrazzo.compression.rows import split_rows
from terrazzo.compression.speed import Here
from terrazzo.compression.subject import drop_of, refuse_guessing
from terrazzo.compression.verified import Verified, differing
from terrazzo.errors import InputError
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.task import Example, Result

TASK = LabelTask(classes=("no", "yes"))


def rows(count, again=1, word="Text"):
    return [Example(text=f"{word}  {i}", target=("no", "yes")[i % 2]) for i in range(count) for _ in range(again)]


def said(some, wrong=0):
    return [Result(label="neither" if i < wrong else row.target, score=0.5) for i, row in enumerate(some)]


def right_of(some):
    return [Result(label=row.target, score=0.5) for row in some]


def quality(drop=0.5, most=0.8):
    return Quality(
        metric="accuracy", dense=90, small=90 - drop, drop=drop, drop_low=0, drop_high=1, drop_most=most, changed=0.1,
        rows=900,
    )  # fmt: skip


def proof(machine="one", faster=4.0, smaller=4.0):
    speeds = Speeds(
        ms=1, fp32_ms=faster, fp32_runtime="torch", plain_ms=8, faster=faster, faster_plain=8, spread=0, lengths=(3,)
    )
    return Proof(
        goal=Goal(faster=3), on=Here(), model="m", model_fingerprint="f", data="d", held_out=None, rows="r", seed=0,
        speeds=speeds, quality=quality(), size=Size(bytes=1, fp32_bytes=4, smaller=smaller), proved=True,
        machine=machine,
    )  # fmt: skip


def test_texts_that_stand_twice_among_the_rows_that_judge_count_once() -> None:
    split = split_rows(TASK, rows(400, word="learn"), [*rows(1200, 3), Example(text="text 7 ", target="no")], 5.0, 0)
    texts = [" ".join(row.text.casefold().split()) for row in (*split.choose, *split.proof)]
    assert len(texts) == len(set(texts)) == 1200
    with pytest.raises(InputError, match="too few to prove a drop of at most 1 points.*542"):
        split_rows(TASK, rows(400, word="learn"), rows(400, 10), 1.0, 0, "learn.jsonl", "held.jsonl")


def test_rows_to_prove_by_are_there_whatever_the_task() -> None:
    values = [Example(text=f"text {i}", target=float(i)) for i in range(400)]
    with pytest.raises(InputError, match="0 to prove by"):
        split_rows(RegressionTask(), values[100:], values[:100], 1.0, 0)


def test_no_changed_answer_is_no_certainty() -> None:
    some = rows(500)
    same = drop_of(TASK, some, said(some), said(some))
    assert same.points == 0 and same.changed == 0
    assert same.most == pytest.approx(100 * 1.645 * math.sqrt(2) / 502)  # and a bootstrap says 0
    many = drop_of(TASK, some, said(some), said(some, wrong=100))
    assert many.most == pytest.approx(20 + 164.5 * math.sqrt(0.16 / 500), abs=0.5)


def test_where_classes_count_alike_the_few_rows_of_one_bound_the_drop() -> None:
    some = [Example(text=f"text {i}", target="yes" if i < 50 else "no") for i in range(2000)]
    found = drop_of(dataclasses.replace(TASK, metric="f1_binary"), some, right_of(some), right_of(some))
    lost = 1.645 * math.sqrt(2) / 52 * 50  # of 50 positives, a few that no resample shows
    assert found.most == pytest.approx(100 * lost / 3 * (1 - 2 * 47 / (2 * 47 + 3)), rel=1e-3) and found.most > 2
    several = MultiTask(problems=tuple(Problem(name=name, classes=("no", "yes")) for name in "ab"))
    both = [dataclasses.replace(row, problem="a" if i < 50 else "b") for i, row in enumerate(some)]
    assert drop_of(several, both, right_of(both), right_of(both)).most == pytest.approx(100 * lost / 50 / 2)


def test_small_drops_are_given_the_rows_that_they_need() -> None:
    with pytest.raises(InputError, match="3,508 rows.*give about 14,028 rows in all"):
        split_rows(TASK, rows(9_017), None, 0.3, 0)
    assert len(split_rows(TASK, rows(14_028), None, 0.3, 0).proof) == 6_014


def test_a_text_that_is_asked_about_twice_stands_in_one_part() -> None:
    task = MultiTask(problems=tuple(Problem(name=name, classes=("no", "yes")) for name in "ab"))
    both = [dataclasses.replace(row, problem=name) for row in rows(2000) for name in ("a", "b")]
    split = split_rows(task, both, None, 3.0, 0)
    parts = [{row.text for row in part} for part in (split.learn, split.choose, split.proof)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert not split.beside([dataclasses.replace(row, problem="other") for row in split.proof])


def test_rows_are_paired_so_that_shared_mistakes_widen_nothing() -> None:
    some = rows(500)
    found = drop_of(TASK, some, said(some, wrong=250), said(some, wrong=260))
    alone = 164.5 * math.sqrt(2 * 0.25 / 500)  # of two models, each on rows of its own
    assert found.points == pytest.approx(2) and found.most - found.points < 0.25 * alone


def test_a_goal_is_proved_by_the_upper_end_of_the_drop_alone() -> None:
    goal, size = Goal(faster=3, smaller=4, drop=1.0), Size(bytes=1, fp32_bytes=4, smaller=4)
    speeds = proof().speeds
    assert unproved(goal, speeds, quality(0.5, 1.0), size) == []
    (why,) = unproved(goal, speeds, dataclasses.replace(quality(0.5, 1.2), rows_needed=1300), size)
    assert "up to 1.20 cannot be ruled out on 900 rows, 1 allowed; about 1,300 rows would tell" in why
    assert unproved(goal, speeds, quality(1.5, 2.0), size) == ["1.50 points lost, 1 allowed"]
    slow = dataclasses.replace(speeds, faster=2.9, faster_plain=9.0)
    assert unproved(goal, slow, quality(), size) == ["2.90x as fast, 3x asked"], "plain PyTorch is no baseline"
    assert unproved(goal, speeds, quality(), dataclasses.replace(size, smaller=3.9)) == ["3.9x as small, 4x asked"]
    assert unproved(Goal(under_ms=0.9, drop=1.0), speeds, quality(), size) == ["1.00 ms, under 0.9 asked"]


def test_speeds_are_said_with_what_they_are_compared_with() -> None:
    line = proof().lines()[0]
    assert "4.00x the fastest fp32 runtime (torch), 8.00x plain PyTorch: 1.00 ms against 4.00 and 8.00 ms" in line


def test_a_drop_that_is_not_a_number_proves_nothing() -> None:
    nan = float("nan")
    assert (
        len(unproved(Goal(smaller=2, drop=1.0), None, quality(nan, nan), Size(bytes=1, fp32_bytes=9, smaller=9))) == 1
    )
    assert len(unproved(Goal(smaller=2, drop=1.0), None, quality(), Size(bytes=1, fp32_bytes=9, smaller=nan))) == 1
    alone = dataclasses.replace(TASK, metric="auroc")
    some = [dataclasses.replace(row, target="yes") for row in rows(120)]
    results = [Result(label="yes", score=0.5, probabilities={"no": 0.5, "yes": 0.5}) for _ in some]
    with pytest.raises(InputError, match="not a number"):
        drop_of(alone, some, results, results)


def test_values_that_the_model_cannot_tell_are_of_another_task() -> None:
    some = [Example(text=str(i), target=float(i % 7)) for i in range(200)]
    with pytest.raises(InputError, match="held.jsonl: spearman .* another task"):
        refuse_guessing(RegressionTask(), some, [Result(score=float(i % 5)) for i in range(200)], "held.jsonl")
    refuse_guessing(RegressionTask(), some, [Result(score=row.target) for row in some], "held.jsonl")


def test_only_what_was_measured_twice_on_one_machine_agrees() -> None:
    assert differing(proof(), proof(faster=5.0)) == ("times the fastest fp32 runtime",)
    assert differing(proof(), proof(smaller=3.9)) == ("times as small",)
    claimed = dataclasses.replace(proof(), quality=dataclasses.replace(quality(), small=90.0, drop=0.0))
    assert differing(claimed, proof()) == ("metric of the compressed model", "drop in points"), "on any machine"
    assert differing(dataclasses.replace(claimed, machine="another"), proof()) == differing(claimed, proof())
    elsewhere = Verified(before=proof(), now=proof("another", faster=9.0), differing=())
    assert sum("agrees" in line for line in elsewhere.lines()) == 5  # the metrics, the drops and the size
    assert "agrees" in Verified(before=proof(), now=proof(), differing=()).lines()[1]
    assert "agrees" not in elsewhere.lines()[1]


def candidate(name, drop, high, faster=4.0):
    offer = Offer(
        name=name, runtime="torch", precision="fp32", ms=1, faster=faster, bytes=1, smaller=4, metric=90, drop=drop,
        drop_high=high,
    )  # fmt: skip
    return Candidate(offer=offer, folder=Path(name))


def test_of_all_that_reach_the_goal_the_surest_is_proved() -> None:
    shot, trained, slow = candidate("shot", 0.6, 1.2), candidate("trained", 1.4, 2.0), candidate("slow", 0, 0.1, 2.0)
    goal = Goal(faster=3, drop=1.0)
    assert surest(goal, [shot, trained, slow], 0.3) is shot
    assert surest(goal, [trained, slow], 0.3) is None
    better = candidate("better", 0.1, 1.3)
    assert surest(goal, [shot, better], 1.0) is shot and surest(goal, [shot, better], 0.3) is better


def test_what_looks_good_by_chance_is_neither_sure_nor_preferred() -> None:
    goal = Goal(faster=3, drop=1.0)
    lucky, taught, worse = (candidate(name, drop, high) for name, drop, high in
                            (("shot", -0.2, 0.9), ("taught", 0.3, 1.1), ("worse", 0.95, 1.8)))  # fmt: skip
    taught, worse = (
        dataclasses.replace(one, offer=dataclasses.replace(one.offer, trained=True)) for one in (taught, worse)
    )
    assert surest(goal, [lucky, taught], 0.3) is taught and surest(goal, [lucky, worse], 0.3) is lucky
    sure = partial(Compression._sure, SimpleNamespace(goal=goal))
    assert lucky.offer.drop_high < goal.drop and not sure(lucky.offer)
    assert sure(candidate("int8", -0.4, 0.1).offer)


def test_a_goal_at_the_end_of_the_axis_is_named_in_full(tmp_path) -> None:
    offers = [candidate("whole", 0.1, 0.2, faster=3.1).offer]
    page = write_report(tmp_path, Goal(faster=3), None, offers, [], "it").read_text()
    assert re.search(r'class="marks"><span style="right:[0-9.]+%;max-width:[7-9][0-9.]+%">asked: 3×</span>', page)


def test_a_time_that_was_asked_for_is_drawn_as_a_speed(tmp_path) -> None:
    offers = [candidate("int8", 0.1, 0.5, faster=2.0).offer, candidate("cut", 0.6, 1.2).offer]
    page = write_report(tmp_path, Goal(under_ms=0.4, drop=1.0), None, offers, [], "fast").read_text()
    assert (
        "asked: 0.4 ms" in page
        and "asked:"
        not in write_report(tmp_path, Goal(smaller=2), None, [], [], "fast").read_text().split("against size")[0]
    )
