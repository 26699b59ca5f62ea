"""Several speeds of one model in one call. Times are made up, as in test_pipeline."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

import terrazzo
from terrazzo.compression import cutting, pipeline
from terrazzo.compression import proof as proof_room
from terrazzo.compression.family import compress_family, members
from terrazzo.compression.goal import Goal
from terrazzo.compression.means import Means
from terrazzo.compression.offers import GoalUnreachable
from terrazzo.compression.plan import read_plan
from terrazzo.compression.proof import read_proof, write_proof
from terrazzo.compression.recover import RecoverConfig
from terrazzo.compression.search import SearchOptions
from terrazzo.compression.verified import Verified, differing
from terrazzo.errors import InputError
from tests.compression.test_pipeline import SimulatedBench, made, quick
from tests.compression.test_proof import proof

__all__ = ["made", "quick"]


def family(made, out, factors, **more):
    model, data, held = made
    lines = []
    options = {"drop": 49.0, "held_out": held, "log": lines.append, "bench": SimulatedBench, **more}
    return compress_family(model, data, factors, out, **options), lines


def test_each_speed_is_cut_from_the_one_before_and_made_once(made, tmp_path, monkeypatch) -> None:
    started = []
    real = cutting.Round.__init__

    def noted(self, cutter, model, number):
        started.append(model.encoder.config)
        real(self, cutter, model, number)

    monkeypatch.setattr(cutting.Round, "__init__", noted)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)  # all learn back
    monkeypatch.setattr(pipeline, "surest", lambda goal, some, *_: some[-1])
    done, _ = family(made, tmp_path / "all", (4, 2))
    assert list(done.proofs) == ["2x", "4x"] and not done.missed
    slow, fast = (terrazzo.load(tmp_path / "all" / name).config for name in done.proofs)
    assert started[-1] == slow != started[0]
    for layer in range(slow.depth):
        assert set(fast.layer_heads(layer)) <= set(slow.layer_heads(layer))
        assert fast.layer_mlp_width(layer) <= slow.layer_mlp_width(layer)
    for folder, least in zip(members(tmp_path / "all"), (2, 4), strict=True):
        proof = read_proof(folder)
        assert proof.proved and proof.speeds.faster >= least
    assert "2 of 2 speeds" in (tmp_path / "all" / "report.html").read_text()
    monkeypatch.setattr(pipeline.Compression, "finish", None)  # nothing is made again
    again, lines = family(made, tmp_path / "all", (2, 4))
    assert again.proofs == done.proofs and sum(line.startswith("kept") for line in lines) == 2
    family(made, tmp_path / "all", (4,))
    assert "2x/report.html" in (tmp_path / "all" / "report.html").read_text(), "the page has what was made before"


def test_what_learned_nothing_back_is_no_start(made, tmp_path, monkeypatch) -> None:
    started = []
    real = cutting.Cutter.__init__

    def noted(self, *given):
        started.append(given[-1])
        real(self, *given)

    monkeypatch.setattr(cutting.Cutter, "__init__", noted)
    family(made, tmp_path / "all", (2, 4))  # both surely within the drop as they are cut
    assert started == [None, None]


def test_rounds_go_on_from_where_the_slower_one_is(made, tmp_path, monkeypatch) -> None:
    quick_means = Means(
        search=SearchOptions(starts=1, failures=1, evaluations=2),
        loss_rows=50,
        calibration=64,
        recover=RecoverConfig(epochs=0.2),
        between=RecoverConfig(epochs=0.2),
        gradual=1.3,
    )
    planned = []
    real = cutting.Round.plan

    def noted(self, ms):
        planned.append((self.cutter.first_faster, ms))
        return real(self, ms)

    monkeypatch.setitem(pipeline.MEANS, "hours", quick_means)
    monkeypatch.setattr(pipeline.Compression, "_sure", lambda self, offer: False)
    monkeypatch.setattr(pipeline, "surest", lambda goal, some, *_: some[-1])
    monkeypatch.setattr(cutting.Round, "plan", noted)
    family(made, tmp_path / "all", (2, 4), effort="hours")
    after = [(faster, ms) for faster, ms in planned if faster > 1.5]
    assert len(after) > 2 and all(ms < 10 / faster for faster, ms in after)  # the dense model takes 10 ms
    plan = read_plan(tmp_path / "all" / "4x" / "plan.json")
    assert (plan.effort, plan.texts, plan.trained) == ("hours", 0, True)


def test_beyond_a_speed_out_of_reach_nothing_is_tried(made, tmp_path, monkeypatch) -> None:
    out = tmp_path / "all"
    done, _ = family(made, out, (2, 20, 30))
    assert list(done.proofs) == ["2x"] and members(out) == [out / "2x"]
    assert "out of reach" in done.missed["20x"] and "not tried" in done.missed["30x"]
    assert "1 of 3 speeds" in (out / "report.html").read_text()
    shutil.copytree(out / "2x", out / "2x-unproved")
    assert members(out) == [out / "2x"]
    shutil.copytree(out / "2x", out / "30x")  # as if it had been reached before
    slow = read_proof(out / "2x")
    write_proof(out / "30x", dataclasses.replace(slow, goal=dataclasses.replace(slow.goal, faster=30)))
    (out / "2x" / "proof.json").write_text("{}")  # and as if this one had been damaged

    def unreachable(self, dry_run):
        raise GoalUnreachable(self.goal, [])

    monkeypatch.setattr(pipeline.Compression, "run", unreachable)
    again, _ = family(made, out, (2, 20, 30))
    assert list(again.proofs) == ["30x"] and "not tried, because 2x" in again.missed["20x"]


def test_a_member_whose_speed_was_withheld_is_not_made_again(made, tmp_path, monkeypatch) -> None:
    real = pipeline.prove_folder

    def in_noise(folder, subject, bench, *rest):
        bench.noisy = True
        return real(folder, subject, bench, *rest)

    monkeypatch.setattr(pipeline, "prove_folder", in_noise)
    done, _ = family(made, tmp_path / "all", (2,))
    assert "too noisy" in done.missed["2x"] and not read_proof(tmp_path / "all" / "2x").proved
    monkeypatch.setattr(pipeline, "prove_folder", None)
    done, _ = family(made, tmp_path / "all", (2,))
    assert f"terrazzo prove {tmp_path / 'all' / '2x'}" in done.missed["2x"]


def test_a_family_replaces_nothing_else(made, tmp_path) -> None:
    for place in ("", "4x"):
        folder = tmp_path / f"all{place}" / place
        folder.mkdir(parents=True)
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(InputError, match="thesis.tex"):
            family(made, tmp_path / f"all{place}", (2, 4))
    shutil.copytree(made[0] / "model", tmp_path / "models" / "4x")
    with pytest.raises(InputError, match="is or holds the model"):
        family((tmp_path / "models" / "4x", *made[1:]), tmp_path / "models", (2, 4))
    with pytest.raises(InputError, match=r"factors 2, 2.0000001, 4: two .* one folder \(2x, 4x\)"):
        family(made, tmp_path / "new", (2, 2.0000001, 4))


def test_what_a_stopped_process_left_is_no_foreign_file(made, tmp_path) -> None:
    out = tmp_path / "all"
    for name in (".4x.work", ".4x.123.tmp", ".4x.previous", "4x-unproved", ".4x-unproved.123.tmp", "1.5x"):
        (out / name).mkdir(parents=True)
    assert family(made, out, (2, 4), dry_run=True)[0] is None
    (out / ".notes.tmp").touch()
    with pytest.raises(InputError, match="notes"):
        family(made, out, (2, 4), dry_run=True)


def test_every_member_is_proved_again_whatever_another_comes_to(command_line, tmp_path, monkeypatch) -> None:
    asked = []
    for faster in (10, 4, 2):
        write_proof(tmp_path / f"{faster}x", dataclasses.replace(proof(faster=faster), goal=Goal(faster=faster)))

    def measured(folder, **options):
        asked.append((folder.name, options["here"]))
        before = read_proof(folder)
        now = dataclasses.replace(before, speeds=proof(faster=4).speeds)
        return Verified(before=before, now=now, differing=differing(before, now))

    monkeypatch.setattr(proof_room, "prove", measured)
    status, _, err = command_line("prove", str(tmp_path), "--here", columns=200)
    assert asked == [("2x", True), ("4x", True), ("10x", True)] and status == 3
    assert "2x: measured again, times the fastest fp32 runtime differ" in err and "10x: " in err and " 4x: " not in err


def test_several_factors_are_read(command_line) -> None:
    wrong = {"2,,4": "write a factor, as 4, or several", "2,2": "the same factor twice", "0.5,2": "factor above 1"}
    for typed, said in wrong.items():
        asked = ("compress", "MODEL", "--data", "rows.jsonl", "--faster", typed, "--out", "o")
        status, _, err = command_line(*asked, columns=200)
        assert status == 2 and said in err
