"""Merging: the formulas of mergekit and peft, heads that stay, folders that answer, one model for several problems."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from terrazzo import load
from terrazzo.checkpoint import save_model
from terrazzo.compression.deltas import Base, changes_of, drop_all
from terrazzo.compression.merge import combine, elected_mean, merge, trimmed
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import TaskModel, load_task_model, save_task_model
from terrazzo.tasks.regression import RegressionTask
from terrazzo.testing import tiny_task_folder, tiny_texts

TASKS = {
    "mood": LabelTask(classes=("calm", "wild"), counts=(3, 4)),
    "size": LabelTask(classes=("large", "small", "tiny")),
    "value": RegressionTask(mean=0.5, std=1.0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, and three fine-tunings of it as `finetune` leaves them."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(3)
    begun = tiny_task_folder(folder / "begun", TASKS["mood"])
    base = save_model(folder / "base", load_task_model(begun).model.encoder, begun / "tokenizer.json")
    opened, tuned = Base.open(base), {}
    for number, (name, task) in enumerate(TASKS.items()):
        model = TaskModel(Encoder(opened.config), task)
        moved = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in opened.state.items()}
        model.encoder.load_state_dict(moved)
        tuned[name] = save_task_model(
            folder / name / "model", model, base / "tokenizer.json", max_len=32 + number
        ).parent
    return opened, tuned


def encoder_of(folder):
    return load_task_model(folder).model.encoder.state_dict()


def peft_ties(task_tensors, density):
    """peft.utils.merge_utils.ties with weights of 1 and majority_sign_method "total", written out."""
    pruned = []
    for tensor in task_tensors:
        mask = torch.zeros_like(tensor).reshape(-1)
        mask[torch.topk(tensor.abs().reshape(-1), k=int(density * tensor.numel()), largest=True)[1]] = 1
        pruned.append(tensor * mask.reshape(tensor.shape))
    task_tensors = torch.stack(pruned, dim=0)
    majority_sign = torch.where(task_tensors.sum(dim=0) >= 0, 1, -1)
    majority_sign_mask = task_tensors.sign() == majority_sign
    mixed = (task_tensors * majority_sign_mask).sum(dim=0)
    return mixed / torch.clamp(majority_sign_mask.sum(dim=0), min=1.0)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_ties_is_pefts_and_mergekits(density):
    torch.manual_seed(0)
    changes = [torch.randn(12, 9) for _ in range(3)]
    assert_close(combine(changes, "ties", density), peft_ties(changes, density))
    # mergekit's generalized task arithmetic: sign by consensus "sum", normalised by the weights of those that agree
    stacked = torch.stack([trimmed(change, density) for change in changes])
    mask = stacked.sign() == (stacked.sum(0) >= 0) * 2 - 1
    divisor = mask.float().sum(0)
    divisor[divisor == 0] = 1
    assert_close(combine(changes, "ties", density), (stacked * mask).sum(0) / divisor)


def test_opposed_entries_do_not_cancel_and_zeros_do_not_count():
    changes = torch.tensor([[3.0, -1.0, 0.0, 0.0], [-1.0, -2.0, 0.0, 5.0], [1.0, 4.0, 0.0, 0.0]])
    assert elected_mean(changes).tolist() == [2.0, 4.0, 0.0, 5.0]
    assert combine(list(changes), "average").tolist() == pytest.approx([1.0, 1 / 3, 0.0, 5 / 3])
    assert combine(list(changes), "arithmetic").tolist() == [3.0, 1.0, 0.0, 5.0]
    assert trimmed(changes[2], 0.25).tolist() == [0.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["average", "arithmetic", "ties"])
def test_every_folder_has_the_merged_encoder_and_its_own_head(made, tmp_path, method):
    base, tuned = made
    merged = merge(base.folder, list(tuned.values()), tmp_path / "out", 0.5, method, seed=4, scale=0.5)
    changes = [drop_all(changes_of(load_task_model(tuned[name]).model, base), 0.5, 4, label=name) for name in TASKS]
    for name, folder in merged.folders.items():
        loaded, before = load_task_model(folder), load_task_model(tuned[name])
        for key, tensor in loaded.model.encoder.state_dict().items():
            wanted = base.state[key] + 0.5 * combine([own[key] for own in changes], method)
            assert torch.equal(tensor, wanted), key
        assert loaded.model.task == TASKS[name] and loaded.max_len == before.max_len
        for key, tensor in before.model.head.state_dict().items():
            assert torch.equal(loaded.model.head.state_dict()[key], tensor)
        assert len(load(folder).predict(tiny_texts(2))) == 2
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["method"]["method"] == method and record["base"]["fingerprint"] == base.fingerprint
    assert record["models"]["mood"]["mean"] == pytest.approx(0.01 * (2 / torch.pi) ** 0.5, rel=0.02)
    assert merged.together is None and "value has kind 'regression'" in merged.note == record["note"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["merge.json", *sorted(TASKS)]


def test_each_difference_has_its_own_weight(made, tmp_path):
    base, tuned = made
    merged = merge(base.folder, list(tuned.values()), tmp_path / "out", 0.0, "arithmetic", weights={"size": 0.25})
    changes = {name: changes_of(load_task_model(tuned[name]).model, base) for name in TASKS}
    for key, tensor in encoder_of(merged.folders["mood"]).items():
        own = [0.25 * some[key] if name == "size" else some[key] for name, some in changes.items()]
        assert_close(tensor, base.state[key] + sum(own), rtol=0, atol=1e-6)


def test_one_model_answers_all_where_all_tasks_are_classes(made, tmp_path):
    base, tuned = made
    folders = {"a": tuned["mood"], "b": tuned["size"]}
    merged = merge(base.folder, folders, tmp_path / "out", p=0.0)
    assert list(merged.folders) == ["a", "b"] and merged.together == tmp_path / "out" / "all"
    loaded = load_task_model(merged.together)
    assert [problem.name for problem in loaded.model.task.problems] == ["a", "b"] and loaded.max_len == 33
    texts, together = [text.split(".")[0] for text in tiny_texts(5)], load(merged.together)
    for name, folder in merged.folders.items():
        asked = together.predict([{"text": text, "problem": name} for text in texts])
        for one, alone in zip(asked, load(folder).predict(texts), strict=True):
            assert one.label == alone.label and one.score == pytest.approx(alone.score, abs=1e-6)


def test_the_average_of_a_fine_tuning_with_itself_is_the_fine_tuning(made, tmp_path):
    base, tuned = made
    merged = merge(base.folder, {"a": tuned["mood"], "b": tuned["mood"]}, tmp_path / "out", p=0.0)
    for key, tensor in encoder_of(tuned["mood"]).items():
        assert_close(encoder_of(merged.folders["a"])[key], tensor, rtol=0, atol=1e-7)


def test_what_cannot_be_merged(made, tmp_path):
    base, tuned = made
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    two = [tuned["mood"], tuned["size"]]
    wide = tiny_task_folder(tmp_path / "wide", TASKS["mood"], width=64)
    for folders, fields, message in (
        (two[:1], {}, "two fine-tunings or more, got 1"),
        (two * 2, {}, "both called 'mood': give names"),
        ({"all": two[0], "b": two[1]}, {}, "'all' cannot be the name"),
        ({"../a": two[0], "b": two[1]}, {}, "'../a' cannot be the name"),
        ([*two, wide], {}, "wide: width is 64, that of the base"),
        ([*two, base.folder], {}, "without the head of a task"),
        (two, {"p": 1.0}, "p is the probability"),
        (two, {"method": "tie"}, "did you mean 'ties'"),
        (two, {"density": 0.5}, "only method 'ties'"),
        (two, {"method": "ties", "density": 0.0}, "density is the share"),
        (two, {"scale": 0.0}, "scale must be above 0"),
        (two, {"weights": {"moods": 0.5}}, "did you mean 'mood'"),
        (two, {"weights": {"mood": float("nan")}}, "that of mood is nan"),
        (two, {"out": tmp_path / "full"}, "holds other files"),
    ):
        with pytest.raises(InputError, match=message):
            merge(**{"base": base.folder, "folders": folders, "out": tmp_path / "out", **fields})
    assert sorted(path.name for path in tmp_path.iterdir() if "wide" not in path.name) == ["full"]
