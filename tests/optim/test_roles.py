import torch
from torch import nn

from terrazzo.nn import MaskedLM, bert, modernbert, mosaicbert
from terrazzo.optim.roles import roles, stacks


def by_role(model):
    found = {}
    for name, role in roles(model).items():
        found.setdefault(role, set()).add(name.removeprefix("encoder."))
    return found


def test_mosaicbert():
    model = MaskedLM(mosaicbert("tiny", 1000, depth=1))
    assert list(roles(model)) == [name for name, _ in model.named_parameters()]
    assert by_role(model) == {
        "embedding": {"embeddings.tokens.weight", "embeddings.token_types.weight"},
        "matrix": {f"blocks.0.{n}.weight" for n in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")},
        "norm": {
            *(f"embeddings.norm.{n}" for n in ("weight", "bias")),
            *(f"blocks.0.{norm}.{n}" for norm in ("attention_norm", "mlp_norm") for n in ("weight", "bias")),
            *(f"head.norm.{n}" for n in ("weight", "bias")),
        },
        "bias": {
            *(f"blocks.0.{n}.bias" for n in ("attention.qkv", "attention.out", "mlp.down")),
            "head.dense.bias",
            "head.bias",
        },
        "head": {"head.dense.weight"},
    }


def test_other_families_have_the_same_roles():
    assert "embeddings.positions.weight" in by_role(MaskedLM(bert("tiny", 1000)))["embedding"]
    assert all("norm" in n for n in by_role(MaskedLM(modernbert("tiny", 1000, norm="rms")))["norm"])


def test_fused_projections_count_their_matrices():
    model = MaskedLM(mosaicbert("tiny", 1000, depth=1))
    counts = {name: count for name, count in stacks(model).items() if count != 1}
    assert counts == {"encoder.blocks.0.attention.qkv.weight": 3, "encoder.blocks.0.mlp.up.weight": 2}


def test_shapes_decide_where_types_say_nothing():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4))
            self.experts = nn.Parameter(torch.ones(2, 4, 4))
            self.embeddings = nn.Conv2d(3, 4, 2)
            self.head = nn.Linear(4, 2)

    assert roles(Custom()) == {
        "gain": "bias",
        "experts": "matrix",
        "embeddings.weight": "embedding",
        "embeddings.bias": "bias",
        "head.weight": "head",
        "head.bias": "bias",
    }
