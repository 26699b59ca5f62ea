"""Differences: dropped without bias, heads never, files small, restored to the bit, another base refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from terrazzo import load
from terrazzo.checkpoint import save_model
from terrazzo.compression.delta_files import load_delta, restore, save_delta
from terrazzo.compression.deltas import (
    CHOICES,
    Base,
    Delta,
    add,
    changes_of,
    drop_all,
    drop_and_rescale,
    drop_by_size,
    keep_largest,
    kept_entries,
    rounded,
)
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import TaskModel, load_task_model, save_task_model
from terrazzo.testing import TINY_MODEL, tiny_task_folder, tiny_texts

TASK = LabelTask(classes=("calm", "wild"), hidden=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base folder, with the masked-language-model head that published ones have."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    model = load_task_model(tiny_task_folder(folder / "task", TASK)).model
    whole = MaskedLM(model.config)
    whole.encoder.load_state_dict(model.encoder.state_dict())
    return save_model(folder / "model", whole, folder / "task" / "tokenizer.json")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """A fine-tuning of the base: every tensor but the positions' moved a little, a head of its own."""
    torch.manual_seed(2)
    opened = Base.open(base)
    model = TaskModel(Encoder(opened.config), TASK)
    moved = {
        name: tensor if "norm" in name else tensor + 1e-3 * torch.randn_like(tensor)
        for name, tensor in opened.state.items()
    }
    model.encoder.load_state_dict(moved)
    path = tmp_path_factory.mktemp("tuned") / "model"
    return save_task_model(path, model, base / "tokenizer.json", max_len=32)


def test_the_mean_over_draws_is_the_change_and_the_spread_is_that_of_a_coin():
    """1000 draws with p = 0.9: each entry within 4.5 standard errors of the change, 96 % of them within 2."""
    torch.manual_seed(0)
    change, p, draws = torch.randn(20, 10), 0.9, 1000
    own = [drop_all({"w": change}, p, seed)["w"] for seed in range(draws)]
    error = change.abs() * (p / (1 - p) / draws) ** 0.5
    off = (torch.stack(own).mean(0) - change).abs() / error
    assert float(off.max()) < 4.5 and float((off < 2).float().mean()) > 0.92
    kept = torch.stack([one != 0 for one in own]).float()
    assert abs(float(kept.mean()) - 0.1) < 4 * (0.09 / kept.numel()) ** 0.5
    plain = torch.stack([drop_all({"w": change}, p, seed, rescale=False)["w"] for seed in range(draws)]).mean(0)
    assert_close(plain * 10, torch.stack(own).mean(0), rtol=0, atol=1e-5)


def test_equal_masks_give_what_peft_and_mergekit_compute():
    """peft.utils.merge_utils.random_pruning and mergekit's bernoulli with rescale_norm l1, written out."""
    torch.manual_seed(0)
    change, density = torch.randn(30, 7), 0.1
    mask = torch.bernoulli(torch.full(change.shape, density))
    reference = torch.div(change * mask, density)
    assert_close(drop_and_rescale(change, mask.bool(), 1 - density), reference)
    assert torch.equal(drop_and_rescale(change, mask.bool(), 1 - density, rescale=False), change * mask)


def test_nothing_dropped_is_the_change_and_draws_depend_on_name_seed_and_label():
    change = torch.randn(50, 4)
    assert torch.equal(drop_all({"w": change}, 0.0, 3)["w"], change)
    same, twice = drop_all({"a": change, "b": change}, 0.5, 3), drop_all({"b": change}, 0.5, 3)
    assert torch.equal(same["b"], twice["b"]) and not torch.equal(same["a"], same["b"])
    for others in (drop_all({"a": change}, 0.5, 4), drop_all({"a": change}, 0.5, 3, label="x")):
        assert not torch.equal(others["a"], same["a"])
    assert kept_entries(torch.Size((1000,)), 0.0, 2**63 + 5).all()
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="p is the probability"):
            drop_all({"w": change}, p, 0)


def test_draws_by_size_have_the_change_as_their_mean_and_less_spread_than_even_ones():
    """2000 draws of 50 entries of which 5 stay on average; squares expected: the sum of change^2 (1 / q - 1)."""
    torch.manual_seed(0)
    change, p, draws = torch.cat([torch.randn(38), torch.tensor([9.0, -7.0]), torch.zeros(10)]), 0.9, 2000
    own = torch.stack([drop_by_size(change, p, seed) for seed in range(draws)])
    low, high = 0.0, 1e3
    for _ in range(100):
        slope = (low + high) / 2
        low, high = (slope, high) if float((slope * change.abs()).clamp(max=1).sum()) < 5 else (low, slope)
    chance = (slope * change.abs()).clamp(max=1)
    spread = (change.square() * (1 / chance - 1)).nan_to_num().sqrt()
    assert float(((own.mean(0) - change).abs() - 4.5 * spread / draws**0.5).max()) <= 1e-5
    assert torch.equal(own[:, 38], torch.full((draws,), 9.0)), "what is surely kept is kept as it is"
    assert abs(float((own != 0).sum(1).float().mean()) - 5) < 0.2
    squares = float((own - change).square().sum(1).mean())
    assert squares == pytest.approx(float(spread.square().sum()), rel=0.1)
    assert squares < 0.5 * 9 * float(change.square().sum())
    assert_close(drop_by_size(change, 0.0, 3), change, rtol=1e-6, atol=0)
    assert not drop_by_size(torch.zeros(3, 2), 0.9, 0).any()


def test_the_largest_stay_and_each_row_goes_as_far_as_it_did():
    change = torch.tensor([[3.0, 1.0, -2.0, 0.1], [0.2, 0.1, 0.1, 0.3], [5.0, 0.0, 0.0, 0.0]])
    left = keep_largest(change, 2 / 3)
    assert [row.nonzero().flatten().tolist() for row in left] == [[0, 1, 2], [], [0]]
    assert_close((left * change).sum(1)[::2], change.square().sum(1)[::2])
    assert torch.equal(keep_largest(change, 2 / 3, rescale=False)[0], change[0] * (change[0].abs() >= 1))
    flat = torch.ones(1, 100)
    assert float(keep_largest(flat, 0.9).max()) == pytest.approx(10), "no factor above DARE's"
    assert_close(keep_largest(change, 0.0), change)
    assert not keep_largest(torch.zeros(4), 0.5).any()


def test_a_choice_that_is_none_is_refused():
    with pytest.raises(InputError, match="choice 'larges': did you mean 'largest'"):
        drop_all({"w": torch.ones(2)}, 0.5, 0, choice="larges")
    with pytest.raises(InputError, match="made to be rescaled"):
        drop_all({"w": torch.ones(2)}, 0.5, 0, choice="size", rescale=False)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("values", ["fp16", "fp32"])
@pytest.mark.parametrize("p", [0.0, 0.9])
def test_a_file_restores_the_masked_model_to_the_bit(base, tuned, tmp_path, values, p, choice):
    opened = Base.open(base)
    delta = Delta.of(opened, tuned, p=p, seed=5, values=values, choice=choice)
    masked, written = delta.model(opened).state_dict(), save_delta(delta, tmp_path / "x" / "d.safetensors")
    assert written == (tmp_path / "x" / "d.safetensors").stat().st_size
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["d.safetensors"]
    path = restore(base, tmp_path / "x" / "d.safetensors", tmp_path / "back")
    back, fine = load_task_model(path), load_task_model(tuned)
    for name, tensor in back.model.state_dict().items():
        assert tensor.numpy().tobytes() == masked[name].numpy().tobytes(), name
    assert back.max_len == 32 and back.model.task == TASK
    assert load_delta(tmp_path / "x" / "d.safetensors", opened).choice == choice
    for name, tensor in fine.model.head.state_dict().items():
        assert torch.equal(back.model.head.state_dict()[name], tensor), "no entry of a head is ever dropped"
    if p == 0:
        texts = tiny_texts(4)
        for one, other in zip(load(path).predict(texts), load(tuned).predict(texts), strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_changes_are_those_of_the_encoder_alone_and_unbiased_through_the_file(base, tuned):
    opened = Base.open(base)
    changes = changes_of(load_task_model(tuned).model, opened)
    assert set(changes) == set(opened.state) and not any(name.startswith("head") for name in changes)
    assert all(bool(change.any()) == ("norm" not in name) for name, change in changes.items())
    delta = Delta.of(opened, tuned, p=0.5)
    assert set(delta.changes) == {name for name in changes if "norm" not in name}
    for name, change in delta.changes.items():
        kept = change != 0
        assert_close(change[kept], 2 * changes[name][kept], rtol=2e-3, atol=1e-7)
        assert abs(float(kept.float().mean()) - 0.5) < 5 * (0.25 / kept.numel()) ** 0.5
    assert torch.equal(add({"w": torch.ones(2)}, {})["w"], torch.ones(2))


def test_small_changes_keep_their_digits_in_half_the_bytes(tmp_path):
    change = torch.tensor([3.1e-4, -2.7e-7, 0.0, 1e-9])
    for shift, worst in ((26, 1e-3), (0, 1.0)):
        error = ((rounded(change, shift, "fp16") - change) / change).nan_to_num().abs()
        assert (float(error[:2].max()) < 1e-3) == (worst < 1)
    assert str(rounded(torch.tensor(-0.0), 0, "fp32").item()) == "0.0"


def test_a_file_with_nine_tenths_dropped_is_a_tenth_of_the_model(tmp_path):
    torch.manual_seed(0)
    folder = tiny_task_folder(tmp_path / "base", TASK, width=128, mlp_width=512)
    tuned = load_task_model(folder)
    with torch.no_grad():
        for parameter in tuned.model.encoder.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    save_task_model(tmp_path / "tuned", tuned.model, folder / "tokenizer.json", max_len=32)
    opened = Base.open(folder)
    share = {}
    for values in ("fp16", "fp32"):
        delta = Delta.of(opened, tmp_path / "tuned", p=0.9, values=values)
        head = sum(tensor.nbytes for tensor in delta.head.values())
        share[values] = (save_delta(delta, tmp_path / values) - head) / opened.bytes
    # a bit of 32 for each entry, and a tenth of 16 or 32; the header is the rest
    assert 0.081 < share["fp16"] < 0.1 and 0.131 < share["fp32"] < 0.15


def test_another_base_is_refused_by_its_fingerprint(base, tuned, tmp_path):
    opened = Base.open(base)
    delta = Delta.of(opened, tuned, p=0.5)
    save_delta(delta, tmp_path / "d")
    torch.manual_seed(9)
    other = Base.open(save_model(tmp_path / "other", Encoder(opened.config), base / "tokenizer.json"))
    plain = Encoder(opened.config)
    plain.load_state_dict(opened.state)
    again = Base.open(save_model(tmp_path / "again", plain, base / "tokenizer.json"))
    assert again.fingerprint == opened.fingerprint != other.fingerprint, "files without the head are the same base"
    for refused in (lambda: load_delta(tmp_path / "d", other), lambda: delta.model(other)):
        with pytest.raises(InputError, match=f"fingerprint.*{opened.fingerprint}|{opened.fingerprint}.*fingerprint"):
            refused()
    wide = Base.open(tiny_task_folder(tmp_path / "wide", TASK, **{"width": 2 * TINY_MODEL["width"]}))
    with pytest.raises(InputError, match=r"width is 32, that of the base .* is 64: another base"):
        Delta.of(wide, tuned)
    held = json.loads((base / "tokenizer.json").read_text())
    held["model"]["vocab"] = {f"{word}x": number for word, number in held["model"]["vocab"].items()}
    held["model"]["vocab"] |= {token["content"]: token["id"] for token in held["added_tokens"]}
    (tmp_path / "words.json").write_text(json.dumps(held))
    words = Base.open(save_model(tmp_path / "words", plain, tmp_path / "words.json"))
    with pytest.raises(InputError, match="its vocabulary is not that of the base"):
        Delta.of(words, tuned)


def test_damaged_files_are_named(base, tuned, tmp_path):
    opened, file = Base.open(base), tmp_path / "d"
    with pytest.raises(InputError, match="d: no such file"):
        load_delta(file, opened)
    save_delta(Delta.of(opened, tuned), file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="d: truncated or damaged"):
        load_delta(file, opened)
    with pytest.raises(InputError, match="format is 'pt', not 'terrazzo-delta-1'"):
        load_delta(tuned / "head.safetensors", opened)
