"""PST and DSEE: nothing changes at first, what is frozen stays, the classifier learns, sparsity is exact."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import torch
from torch.testing import assert_close

from terrazzo.checkpoint import load_model, save_model, without_values
from terrazzo.cli.finetuning import config_of, merged
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, bert, modernbert, mosaicbert
from terrazzo.optim import AdamWConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example
from terrazzo.tasks.adapters import (
    DseeConfig,
    LoraConfig,
    PstConfig,
    adapted_layers,
    adapter_parameters,
    add_adapters,
    merge_adapters,
    zero_shares,
)
from terrazzo.tasks.adapters.base import largest
from terrazzo.tasks.adapters.dsee import sparse_places
from terrazzo.tasks.adapters.pst import sparsity_at
from terrazzo.tasks.finetune import finetune
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr, run_config
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import TaskModel, load_task_model, save_task_model
from terrazzo.tasks.training import TaskWorkload
from terrazzo.testing import TINY_MODEL, log_metrics, tiny_texts
from terrazzo.train import Budget, train
from terrazzo.train.metrics import read_metrics

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 48}
CONFIGS = {
    "mosaicbert": mosaicbert("tiny", 50, **SMALL, dropout=0.0),
    "bert": bert("tiny", 50, **SMALL, dropout=0.0, attention_dropout=0.0),
    "uneven": modernbert("tiny", 50, **SMALL).replace(kept_heads=((1,), ()), mlp_widths=(0, 40)),
}
PST = PstConfig(sparsity=0.75, rank=3, score_rank=2, every=2)
DSEE = DseeConfig(rank=3, entries=9, prune=0.3)
DSEE_WEIGHT = dataclasses.replace(DSEE, masked="weight")
BATCH = Packed(tokens_T=torch.arange(20) * 7 % 50, lengths=(7, 1, 12))
ROWS = [
    Example(text=text.split(".")[0], target="animal" if text[:5] in ("the c", "the d", "a bir") else "thing")
    for text in tiny_texts(60)
]
every_kind = pytest.mark.parametrize("options", [PST, DSEE, DSEE_WEIGHT], ids=["pst", "dsee", "dsee-weight"])


def trained(encoder, steps=20, seed=4):
    """Some steps of an objective without meaning, told of their progress as the loop tells it."""
    optimizer = AdamWConfig(lr=0.05).build(encoder)
    target = torch.randn(20, 32, generator=torch.Generator().manual_seed(seed))
    for step in range(1, steps + 1):
        for layer in adapted_layers(encoder).values():
            layer.advance(step / steps)
        (encoder.train()(BATCH) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@every_kind
@pytest.mark.parametrize("family", CONFIGS)
def test_at_first_it_computes_what_the_dense_model_does_to_the_bit(options, family):
    encoder = Encoder(CONFIGS[family])
    before = encoder(BATCH)
    add_adapters(encoder, options)
    assert adapter_parameters(encoder)
    assert torch.equal(encoder(BATCH), before) and torch.equal(encoder.eval()(BATCH), before)


@every_kind
@pytest.mark.parametrize("family", CONFIGS)
def test_frozen_weights_stay_and_merged_equals_live(options, family):
    encoder = Encoder(CONFIGS[family])
    names, before = list(encoder.state_dict()), copy.deepcopy(encoder.state_dict())
    add_adapters(encoder, options)
    beginning = {name: p.clone() for name, p in adapter_parameters(encoder).items()}
    trained(encoder)
    after = encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(not torch.equal(p, beginning[name]) for name, p in adapter_parameters(encoder).items())
    live = encoder.eval()(BATCH)
    assert not torch.equal(live, Encoder(CONFIGS[family]).eval()(BATCH))
    merge_adapters(encoder.train())
    assert list(encoder.state_dict()) == names and not adapted_layers(encoder)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert_close(encoder.eval()(BATCH), live, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [PST, DSEE], ids=["pst", "dsee"])
def test_every_matrix_has_its_share_of_zeros_and_no_zero_more(options):
    encoder = Encoder(CONFIGS["mosaicbert"])
    add_adapters(encoder, options)
    trained(encoder)
    share = options.sparsity if options.kind == "pst" else options.prune
    stacks = {name: layer.stacked for name, layer in adapted_layers(encoder).items()}
    merge_adapters(encoder)
    assert len(stacks) == 8
    for name, stacked in stacks.items():
        for matrix in encoder.get_submodule(name).weight.chunk(stacked):
            assert int((matrix == 0).sum()) == round(share * matrix.numel())
    assert all(value == pytest.approx(share, abs=1e-3) for value in zero_shares(encoder).values())


def test_what_stays_are_the_largest_scores_of_each_matrix_and_evaluations_choose_nothing():
    encoder = Encoder(CONFIGS["bert"])
    add_adapters(encoder, PST)
    layer = adapted_layers(encoder)["blocks.0.attention.qkv"]
    with torch.no_grad():
        for parameter in adapter_parameters(layer).values():
            parameter.normal_()
    layer.advance(1.0)
    layer.eval()(torch.randn(3, 32))
    assert bool(layer.pst_kept.all())
    layer.train()(torch.randn(3, 32))
    for part, rows in enumerate(layer.weight.chunk(3)):
        moved = rows + layer.pst_u[part] @ layer.pst_v[part]
        scores = moved.abs() + layer.pst_a[part] @ layer.pst_b[part] + layer.pst_rows[part] + layer.pst_columns[part]
        kept = torch.zeros(32 * 32, dtype=torch.bool)
        kept[scores.flatten().argsort(descending=True)[:256]] = True
        assert torch.equal(layer.pst_kept[part].flatten(), kept)
        assert_close(layer.effective().chunk(3)[part], moved * kept.view(32, 32))


def test_gradients_reach_the_scores_as_if_the_mask_were_they():
    layer = adapted_layers_of_one(PST)
    layer.advance(1.0)
    outer = torch.randn(32, 32)
    (layer.effective() * outer).sum().backward()
    moved = (layer.weight + (layer.pst_u @ layer.pst_v)[0]).detach()
    straight = outer * moved
    assert_close(layer.pst_rows.grad[0], straight.sum(1, keepdim=True))
    assert_close(layer.pst_columns.grad[0], straight.sum(0, keepdim=True))
    assert_close(layer.pst_b.grad[0], layer.pst_a[0].detach().T @ straight)
    through = outer * layer.pst_kept[0] + straight * moved.sign()
    assert_close(layer.pst_v.grad[0], layer.pst_u[0].detach().T @ through)


def adapted_layers_of_one(options):
    encoder = Encoder(CONFIGS["bert"])
    add_adapters(encoder, options)
    return adapted_layers(encoder)["blocks.0.attention.out"]


def test_masks_are_chosen_every_so_many_steps_and_when_the_sparsity_is_final():
    layer, seen = adapted_layers_of_one(dataclasses.replace(PST, every=40)), []
    for step in range(1, 101):
        layer.advance(step / 100)
        layer.effective()
        seen.append(round(1 - float(layer.pst_kept.float().mean()), 3))
    changes = [step for step in range(2, 101) if seen[step - 1] != seen[step - 2]]
    assert changes == [40, 70] and seen[-1] == 0.75 and not adapted_layers_of_one(PST).settled and layer.settled


def test_the_schedule_is_dense_then_cubic_then_constant():
    at = lambda progress: sparsity_at(PstConfig(sparsity=0.9), progress)  # noqa: E731
    assert at(0.0) == at(0.1) == 0.0 and at(0.7) == at(0.71) == at(1.0) == 0.9 and at(0.69) < 0.9
    assert at(0.4) == pytest.approx(0.9 * (1 - 0.5**3)) and at(0.25) == pytest.approx(0.9 * (1 - 0.75**3))


def test_ties_are_cut_to_the_exact_number():
    scores = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert largest(scores, 3).tolist() == [[True, True, True], [False, False, False]]
    assert largest(scores, 0).all() and not largest(scores, 6).any()
    with pytest.raises(ValueError, match="7 of 6"):
        largest(scores, 7)


def test_as_many_parameters_are_trained_as_the_formula_says():
    with without_values():
        encoder = Encoder(bert("tiny", 1000, width=384, depth=6, num_heads=12, mlp_width=1536))
        add_adapters(encoder, PstConfig(), empty=True)
        count = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
        assert count == 6 * 17 * (4 * (384 + 384) + 2 * (384 + 1536)) == 705_024
        encoder = Encoder(encoder.config)
        add_adapters(encoder, DseeConfig(), empty=True)
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 6 * 2 * (16 * 2 * 384 + 128)


def test_the_sparse_update_has_the_places_of_planted_entries_and_exactly_so_many():
    torch.manual_seed(0)
    weight = torch.randn(72, 3) @ torch.randn(3, 64) * 0.3
    planted = torch.randperm(72 * 64)[:12].sort().values
    weight.view(-1)[planted] += 0.4
    assert not set(weight.abs().flatten().topk(12).indices.tolist()) & set(planted.tolist()), "the sum hides them"
    assert torch.equal(sparse_places(weight, 12), planted)
    torch.manual_seed(1)
    assert torch.equal(sparse_places(weight, 12), planted), "the places depend on the weights alone"


def test_dsee_updates_queries_and_values_alone_and_prunes_by_the_sum():
    encoder = Encoder(CONFIGS["bert"])
    add_adapters(encoder, DSEE_WEIGHT)
    trained(encoder)
    layer = adapted_layers(encoder)["blocks.1.attention.qkv"]
    assert {name.split(".")[-2] for name in adapter_parameters(encoder)} == {"qkv"}
    assert layer.dsee_places.shape == (2, 9) and all(len(set(own.tolist())) == 9 for own in layer.dsee_places)
    kept, wanted = layer.dsee_kept, []
    for part, rows in enumerate(layer.weight.chunk(3)):
        update = torch.zeros(32, 32)
        if part != 1:
            update.view(-1)[layer.dsee_places[part // 2]] = layer.dsee_values[part // 2].detach()
            update = 32.0 / 3 * (update + layer.dsee_up[part // 2] @ layer.dsee_down[part // 2]).detach()
        wanted.append(rows * kept[part] + update)
        assert int((~kept[part]).sum()) == round(0.3 * 32 * 32)
    assert torch.equal(kept[1], largest(layer.weight.chunk(3)[1].abs(), 307)), "keys have no update"
    assert not torch.equal(kept[0], largest(layer.weight.chunk(3)[0].abs(), 307)), "queries are ranked with theirs"
    assert_close(layer.merged().weight, torch.cat(wanted))


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=corpus.vocab_size, **{**TINY_MODEL, "depth": 1, "dropout": 0.1})
    return save_model(tmp_path_factory.mktemp("plain") / "model", Encoder(config), corpus.path / "tokenizer.json")


@pytest.mark.parametrize("options", [PST, DSEE], ids=["pst", "dsee"])
def test_a_fine_tuning_trains_the_classifier_and_leaves_a_plain_sparse_model(options, plain, tmp_path):
    config = FinetuneConfig(
        model=str(plain), out=str(tmp_path / "out"), seeds=1, lr=(1e-2,), epochs=4, batch_size=10, threads=1,
        adapter=options, keep_runs=True,
    )  # fmt: skip
    result = finetune(config, train=ROWS[:40], eval=ROWS[40:])
    loaded = load_task_model(result.model)
    assert loaded.adapter is None and not adapted_layers(loaded.model)
    share = options.sparsity if options.kind == "pst" else options.prune
    shares = zero_shares(loaded.model.encoder)
    assert len(shares) == 4 and all(value == pytest.approx(share, abs=1e-3) for value in shares.values())
    before = load_model(plain).state_dict()
    kept = {name: tensor for name, tensor in loaded.model.encoder.state_dict().items() if name not in shares}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())

    run = next((tmp_path / "out" / "runs").iterdir())
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "score" in line]
    scored = [line["step"] for line in lines if line["score"] == line["score"]]
    assert [line["step"] for line in lines] == [4, 8, 12, 16]
    assert scored == ([12, 16] if options.kind == "pst" else [8, 12, 16]), "no dense model counts as the best"

    rows = LabelledRows.encode(loaded.model.task, ROWS[:40], loaded.tokenizer, 32)
    workload = TaskWorkload(
        task=loaded.model.task, tokenizer=loaded.tokenizer, train=rows, dev=rows, max_len=32, adapter=options
    )
    begun = run_config(config, 40, 1e-30, 0, str(tmp_path / "begun"), Budget(steps=1))
    train(dataclasses.replace(begun, seed=config.seed), workload=workload)
    first = load_task_model(tmp_path / "begun").model.head.state_dict()
    assert all(not torch.equal(tensor, first[name]) for name, tensor in loaded.model.head.state_dict().items())


@pytest.mark.parametrize("options", [PST, DSEE], ids=["pst", "dsee"])
def test_a_killed_run_goes_on_to_the_same_bits(options, corpus, plain, tmp_path):
    task = LabelTask.learn(ROWS)
    rows = LabelledRows.encode(task, ROWS, corpus.tokenizer, 32)
    workload = TaskWorkload(
        task=task, tokenizer=corpus.tokenizer, train=rows, dev=rows, max_len=32, batch_size=8, adapter=options
    )
    config = FinetuneConfig(model=str(plain), out="", adapter=options, batch_size=8, threads=1)
    whole, again = tmp_path / "whole", tmp_path / "again"
    run = dataclasses.replace(run_config(config, 60, 1e-2, 0, str(whole), Budget(steps=12)), checkpoint_every=7, keep=9)
    train(run, workload=workload, hooks=log_metrics)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "step-00000012")
    train(dataclasses.replace(run, out=str(again)), workload=workload, resume=True, hooks=log_metrics)
    one, other = (load_task_model(folder / "model").model.state_dict() for folder in (whole, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@every_kind
def test_a_checkpoint_holds_masks_and_places_as_they_are(options, corpus, tmp_path):
    model = TaskModel(Encoder(bert("tiny", corpus.vocab_size, **SMALL, dropout=0.0)), LabelTask(classes=("a", "b")))
    add_adapters(model.encoder, options)
    for layer in adapted_layers(model).values():
        layer.advance(1.0)
    model(BATCH)
    path = save_task_model(tmp_path / "c", model, corpus.path / "tokenizer.json", max_len=8, adapter=options)
    apart, merged = load_task_model(path, merge=False), load_task_model(path)
    assert apart.adapter == options
    for name, tensor in model.state_dict().items():
        held = apart.model.state_dict()[name]
        assert held.dtype == tensor.dtype and torch.equal(held, tensor), name
    assert_close(merged.model.eval()(BATCH), model.eval()(BATCH), rtol=0, atol=1e-6)


def test_a_folder_written_before_there_were_kinds_is_read(corpus, tmp_path):
    model = TaskModel(Encoder(bert("tiny", corpus.vocab_size, **SMALL)), LabelTask(classes=("a", "b")))
    add_adapters(model.encoder, LoraConfig(rank=2))
    tokenizer = corpus.path / "tokenizer.json"
    path = save_task_model(tmp_path / "c", model, tokenizer, max_len=8, adapter=LoraConfig(rank=2))
    assert '"kind": "lora"' not in (path / "task.json").read_text(), "the file is as it always was"
    assert load_task_model(path, merge=False).adapter == LoraConfig(rank=2)


def test_what_cannot_be_asked_for():
    asked = {"model": "m", "out": "o"}
    for make, message in (
        (lambda: PstConfig(sparsity=1.0), "pst.sparsity"),
        (lambda: PstConfig(every=0), "pst.every must be at least 1"),
        (lambda: PstConfig(dense=0.5, constant=0.5), "leave no time"),
        (lambda: DseeConfig(prune=1.0), "dsee.prune"),
        (lambda: DseeConfig(prune_at=1.0), "dsee.prune_at"),
        (lambda: DseeConfig(entries=0), "dsee.entries must be"),
        (lambda: FinetuneConfig(**asked, lora=LoraConfig(), adapter=PST), "two adapters at once"),
        (lambda: FinetuneConfig(**asked, adapter=PST, freeze="encoder"), "pst trains adapters.*drop one"),
        (lambda: add_adapters(Encoder(CONFIGS["bert"]), PstConfig(rank=32)), "pst.rank 32: the model's"),
        (lambda: add_adapters(Encoder(CONFIGS["bert"]), DseeConfig(entries=2000)), "dsee.entries 2000: .* have 1024"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_rates_and_schedules_follow_the_adapter(plain, tmp_path):
    thin = EncoderConfig(vocab_size=9, width=768, num_heads=2)
    asked = FinetuneConfig(model=str(plain), out=str(tmp_path / "out"), patience=2, seeds=1)
    rates = [default_lr(thin, dataclasses.replace(asked, adapter=kind)) for kind in (None, LoraConfig(), PST, DSEE)]
    assert rates == [5e-5, 5e-4, 5e-5, 5e-4]
    assert default_lr(thin, dataclasses.replace(asked, lora=LoraConfig())) == 5e-4
    with pytest.raises(InputError, match="patience 2: adapter 'pst' prunes up to the end"):
        finetune(dataclasses.replace(asked, adapter=PST), train=ROWS, eval=ROWS[:20])
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_kind_and_its_fields():
    given = merged({"model": "m", "train": "t", "out": "o"}, {"adapter": {"kind": "pst"}, "lora": {"rank": None}})
    assert config_of(given, ["adapter.sparsity=0.5"], "command line").adapter == PstConfig(sparsity=0.5)
    assert config_of(merged(given, {"lora": {"rank": 4}, "adapter": {"kind": None}}) | {"adapter": None}, [], "x").lora
    for assignment, message in (("adapter.sparsty=0.5", "did you mean 'sparsity'"), ("adapter.kind=ps", "'pst'")):
        with pytest.raises(InputError, match=message):
            config_of(given, [assignment], "command line")
