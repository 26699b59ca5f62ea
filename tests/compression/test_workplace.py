"""Where a compression works: nothing of anyone is lost, and work is gone on with only where nothing has changed."""

from __future__ import annotations

import json

import pytest

from terrazzo.compression import workplace
from terrazzo.compression.timing import Times
from terrazzo.compression.workplace import Workplace, refuse_out, unproved_out
from terrazzo.errors import InputError
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder


def test_a_folder_that_would_lose_something_is_refused(tmp_path) -> None:
    model = tiny_task_folder(tmp_path / "run" / "model", LabelTask(classes=("a", "b")))
    for out in (model, model / "fast", tmp_path / "run", tmp_path):
        with pytest.raises(InputError, match="name a folder beside it"):
            refuse_out(out, model)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        refuse_out(tmp_path / "notes", model)
    with pytest.raises(InputError, match="cannot be written to"):
        refuse_out(tmp_path / "notes" / "fast", model)
    fast = tiny_task_folder(tmp_path / "fast", LabelTask(classes=("a", "b")))
    with pytest.raises(InputError, match="no compression wrote"):
        refuse_out(fast, model)
    (fast / "proof.json").write_text("{}")
    refuse_out(fast, model)
    (fast / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no compression wrote \(notes.txt\)"):
        refuse_out(fast, model)
    refuse_out(tmp_path / "new" / "fast", model)


def test_work_is_of_one_question_and_one_process(tmp_path, monkeypatch) -> None:
    place = Workplace(tmp_path / "fast", {"rows": "one"})
    assert place.folder != Workplace(tmp_path / "fast", {"rows": "another"}).folder
    assert place.folder == Workplace(tmp_path / "fast", json.loads('{"rows": "one"}')).folder
    with place.held(), pytest.raises(InputError, match="another process makes"):
        place.held().__enter__()
    assert not place.root.exists()
    times = Times(ms={"torch": 2.5}, spread=0.01, rounds=6)
    with place.held():
        place.keep_times(times)
    assert Workplace(tmp_path / "fast", {"rows": "one"}).times() == times
    monkeypatch.setattr(workplace, "versions", lambda packages: {"torch": "another"})
    assert Workplace(tmp_path / "fast", {"rows": "one"}).times() is None


def test_a_model_without_its_proof_goes_where_nothing_is_lost(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "proof.json").write_text("{}")  # damaged: shows nothing
    assert unproved_out(out) == out
    (tmp_path / "out-unproved").mkdir()
    (tmp_path / "out-unproved" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="out-unproved would be replaced.*thesis.tex"):
        refuse_out(tmp_path / "out", tmp_path / "model")
