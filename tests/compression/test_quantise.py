"""Few bits: grids and rounding against slow references, the choice against all choices, folders by their files."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import terrazzo
from terrazzo.compression.quantise import (
    BitPlan,
    QuantiseOptions,
    choose_bits,
    packed_bytes,
    quantise,
    requantise,
    save_packed,
    uniform_plan,
    weights_of,
)
from terrazzo.compression.quantise.bits import outputs_moved
from terrazzo.compression.quantise.grids import nearest
from terrazzo.compression.quantise.rounding import compensated
from terrazzo.compression.solver import Unreachable
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.export import export
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import load_task_model

ROWS = [Example(text="the cat purrs", target="a"), Example(text="a river flows by", target="b")]
SHAPE = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 48, "max_len": 32}


def texts(count, vocab_size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 20, (count,), generator=draw).tolist()
    some = [torch.randint(vocab_size, (length,), generator=draw).tolist() for length in lengths]
    return [Packed.from_sequences(some[i : i + 4]) for i in range(0, count, 4)]


@pytest.fixture
def task_model(corpus):
    """A task model whose matrices differ in how much they matter, and the file of its tokenizer."""
    config = bert("base", vocab_size=corpus.tokenizer.get_vocab_size(), **SHAPE)
    model = TaskModel(Encoder(config), LabelTask.learn(ROWS))
    for number, weight in enumerate(weights_of(model).values()):
        weight.data.copy_(torch.randn_like(weight) * (0.05, 0.3, 0.15)[number % 3])
    return model, corpus.path / "tokenizer.json"


def heavy_tailed(rows=48, columns=96):
    scale_O1 = torch.logspace(-1.5, 0, rows)[:, None]
    return torch.distributions.StudentT(3.0).sample((rows, columns)) * scale_O1


def error(weight, packed):
    return float((packed.values() - weight).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_smaller_groups_and_fitted_grids_have_less_error(bits):
    weight = heavy_tailed()
    layer = nearest(weight.view(1, -1), bits, 0)
    rows, groups = nearest(weight, bits, 0), nearest(weight, bits, 32)
    errors = [error(weight.view(1, -1), layer), error(weight, rows), error(weight, groups)]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 3
    fitted = nearest(weight, bits, 32, "error")
    assert error(weight, fitted) <= errors[2] and (bits > 4 or error(weight, fitted) < 0.9 * errors[2])
    for packed in (groups, fitted):
        values = packed.values().unflatten(1, (3, 32)).flatten(0, 1)
        assert max(len(group.unique()) for group in values) <= 2**bits


def test_columns_that_count_more_get_the_smaller_error():
    weight = heavy_tailed()
    importance = torch.ones(96)
    importance[:16] = 100.0
    plain, weighed = (nearest(weight, 2, 32, "error", counts) for counts in (None, importance))
    assert error(weight[:, :16], _columns(weighed)) < error(weight[:, :16], _columns(plain))


def _columns(packed, count=16):
    class Part:
        def values(self):
            return packed.values()[:, :count]

    return Part()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [40, 37])
def test_rounded_values_stay_when_they_are_rounded_again(bits, columns):
    nasty = [heavy_tailed(16, columns), torch.full((2, columns), 0.3), torch.zeros(2, columns)]
    nasty += [100 + 1e-3 * torch.randn(4, columns), 100 + 0.3 * torch.rand(4, columns), 1e-7 * torch.randn(4, columns)]
    nasty += [-5 - torch.rand(4, columns), torch.randn(4, columns) * 1e4]
    weight = torch.cat(nasty)
    for group in (0, 8):
        once = nearest(weight, bits, group)
        twice = nearest(once.values(), bits, group)
        assert torch.equal(once.values(), twice.values())
        ends = weight.amax(1) - weight.amin(1)
        assert (
            (once.values() - weight).abs().amax(1) <= 0.51 * ends / (2**bits - 1) + 1e-3 * weight.abs().amax(1) + 1e-6
        ).all()
    with pytest.raises(InputError, match="65504"):
        nearest(torch.full((2, 2), 1e6), bits, 0)


def surgery(weight_OI, gram_II, first, damp):
    """Each row by itself, largest input first, with a fresh inverse of what is left at every column."""
    gram = gram_II + damp * gram_II.diagonal().mean() * torch.eye(len(gram_II), dtype=gram_II.dtype)
    step, lowest = (part.double() for part in first.spread())
    after, left = weight_OI.double().clone(), gram.diagonal().argsort(descending=True, stable=True).tolist()
    while left:
        inverse = torch.linalg.inv(gram[left][:, left])
        column = left[0]
        codes = ((after[:, column] - lowest[:, column]) / step[:, column]).round().clamp(0, 2**first.bits - 1)
        moved = after[:, column] - (lowest[:, column] + step[:, column] * codes)
        after[:, left] -= moved[:, None] / inverse[0, 0] * inverse[0]
        left = left[1:]
    return after


@pytest.mark.parametrize("bits", [2, 3])
def test_rounding_with_inputs_is_brain_surgery_and_keeps_outputs(bits):
    torch.manual_seed(bits)
    inputs = torch.randn(300, 140) @ torch.randn(140, 140) * torch.logspace(-0.5, 0.5, 140)[torch.randperm(140)]
    weight, gram = torch.randn(6, 140), (inputs.T @ inputs).double()
    made = compensated(weight, gram, bits, 32, "range")
    expected = surgery(weight, gram, nearest(weight, bits, 32), 0.01)
    agree = torch.isclose(made.values().double(), expected, rtol=1e-4, atol=1e-4).double().mean()
    assert agree > 0.99, "a sum at the edge between two codes may fall to either side"
    lost = [
        float(((packed.values() - weight) @ inputs.T).square().sum()) for packed in (made, nearest(weight, bits, 32))
    ]
    assert lost[0] < 0.6 * lost[1]


@pytest.mark.parametrize("kind", ["task", "masked", "encoder", "modern"])
def test_a_packed_folder_is_the_model_and_has_its_size(kind, task_model, corpus, tmp_path):
    model, file = task_model
    if kind != "task":
        shape = modernbert if kind == "modern" else bert
        config = shape("base", vocab_size=corpus.tokenizer.get_vocab_size(), **SHAPE)
        model = (MaskedLM if kind == "masked" else Encoder)(config)
    batches, before = texts(16, model.config.vocab_size), {n: t.clone() for n, t in model.state_dict().items()}
    small = quantise(model, batches, bits=3, options=QuantiseOptions(group=16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    folder = save_packed(tmp_path / "m", small, file, max_len=32)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size == small.bytes == packed_bytes(model, small.plan, file)
    rows = {name: min(len(w), model.config.vocab_size) for name, w in weights_of(model).items()}
    entries = {name: rows[name] * w.shape[1] for name, w in weights_of(model).items()}
    payload = sum(count * small.plan.bits[name] // 8 + count // 16 * 4 for name, count in entries.items())
    assert payload < size < payload + 12_000
    network = load_task_model(folder).model if kind == "task" else terrazzo.load(folder).network
    stored = network.state_dict()
    for name, tensor in small.model.state_dict().items():
        count = min(len(tensor), model.config.vocab_size) if name.endswith("tokens.weight") else len(tensor)
        assert torch.equal(stored[name][:count], tensor[:count]), name
    for name, bits in small.plan.bits.items():
        full = name if kind in ("encoder", "modern") or name.startswith("head.") else f"encoder.{name}"
        assert (
            max(len(row.unique()) for row in small.model.state_dict()[full].unfold(1, 16, 16).flatten(0, 1)) <= 2**bits
        )


def test_packed_task_folders_predict_and_export(task_model, tmp_path):
    model, file = task_model
    small = quantise(model, bits=4, options=QuantiseOptions(rounding="nearest"))
    folder = save_packed(tmp_path / "packed", small, file, {"metric": 1.0}, max_len=32)
    said = terrazzo.load(folder).predict(["the cat purrs", "an engine hums at night"])
    exported = export(folder, tmp_path / "out", runtime="torch")
    again = terrazzo.load(exported.folder).predict(["the cat purrs", "an engine hums at night"])
    assert [one.label for one in said] == [one.label for one in again]
    assert (exported.folder / "model.packed.safetensors").is_file() and exported.graph_bytes < 4 * packed_bytes(
        model, small.plan
    )


def test_what_is_known_of_inputs_lessens_the_change_of_outputs(task_model):
    model, _ = task_model
    batches, held_out = texts(64, model.config.vocab_size), texts(32, model.config.vocab_size, seed=1)
    ways = [("range", "nearest"), ("error", "nearest"), ("error", "inputs")]
    moved = [
        outputs_moved(
            model, quantise(model, batches, bits=3, options=QuantiseOptions(fit=fit, rounding=how)).model, held_out
        )
        for fit, how in ways
    ]
    assert moved[2] < 0.7 * moved[0] and moved[2] < moved[1]


def test_training_free_packing_by_a_plan_is_lossless_on_the_grid(task_model):
    model, _ = task_model
    plan = BitPlan(bits={"embeddings.tokens.weight": 2, "blocks.1.mlp.up.weight": 3}, group=16)
    first = requantise(model, plan)
    assert requantise(first.model, plan).packed.keys() == {f"encoder.{name}" for name in plan.bits}
    second = requantise(first.model, plan).model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.model.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_those_of_all_choices(seed):
    torch.manual_seed(seed)
    model = Encoder(bert("base", vocab_size=20, width=16, depth=2, num_heads=2, mlp_width=24, max_len=8))
    names = [name for name in weights_of(model) if name.startswith("blocks.")][:6]
    levels = dict.fromkeys(names, (2, 4, 8))
    errors = {name: [4.0**-bits * float(1 + torch.rand(())) for bits in (2, 4, 8)] for name in names}
    weigh = {name: float(torch.rand(()) ** 3) for name in names}
    plans = [
        BitPlan(bits=dict(zip(names, bits, strict=True)), group=8) for bits in itertools.product((2, 4, 8), repeat=6)
    ]

    def cost(plan):
        return sum(weigh[name] * errors[name][(2, 4, 8).index(bits)] for name, bits in plan.bits.items())

    least, most = (packed_bytes(model, plans[end]) for end in (0, -1))
    budget = (least + most) // 2
    chosen = choose_bits(model, levels, errors, weigh, budget, 8)
    best = next(plan for plan in sorted(plans, key=cost) if packed_bytes(model, plan) <= budget)
    assert packed_bytes(model, chosen) <= budget and cost(chosen) == pytest.approx(cost(best), rel=1e-9)
    with pytest.raises(Unreachable, match="out of reach") as refused:
        choose_bits(model, levels, errors, weigh, least - 8, 8)
    assert abs(refused.value.least - least) <= 16


@pytest.mark.parametrize("seed", range(3))
def test_mixed_bits_beat_uniform_ones_of_equal_bytes(seed, task_model):
    model, _ = task_model
    batches, held_out = texts(48, model.config.vocab_size, seed), texts(48, model.config.vocab_size, seed + 10)
    options = QuantiseOptions(group=16)
    uniform = quantise(model, batches, bits=3, options=options)
    mixed = quantise(model, batches, budget=uniform.bytes, options=options)
    assert mixed.bytes <= uniform.bytes and len(set(mixed.plan.bits.values())) > 2
    assert outputs_moved(model, mixed.model, held_out) < outputs_moved(model, uniform.model, held_out)
    given = {name: 1.0 for name in weights_of(model)}
    assert quantise(model, batches, budget=uniform.bytes, options=options, sensitivity=given).bytes <= uniform.bytes


def test_what_cannot_be_is_refused(task_model):
    model, _ = task_model
    with pytest.raises(InputError, match="one of the two"):
        quantise(model, bits=4, budget=1000)
    with pytest.raises(InputError, match="needs calibration batches"):
        quantise(model, bits=4)
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.upp\.weight"):
        requantise(model, BitPlan(bits={"blocks.1.mlp.upp.weight": 4}))
    with pytest.raises(InputError, match="1 to 8"):
        BitPlan(bits={"a": 9})
    with pytest.raises(InputError, match="there is none of"):
        quantise(model, texts(4, 20), budget=10**6, sensitivity={})
    with pytest.raises(Unreachable):
        quantise(model, texts(8, 20), budget=1000)
    assert_close(uniform_plan(model, 4).bits["head.out.0.weight"], 8)
