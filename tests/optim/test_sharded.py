"""Every optimizer gives sharded parameters the step that it gives whole ones."""

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.optim import OPTIMIZERS, optimizer_state_bytes

RANKS = 2


def compare(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for kind, config in OPTIMIZERS.items():
        torch.manual_seed(0)
        whole = MaskedLM(mosaicbert("tiny", 64, width=16, num_heads=2, mlp_width=32, depth=1))
        sharded = fully_shard(copy.deepcopy(whole), mesh=mesh)
        fields = {"dtype": "float32"} if kind == "muon" else {}
        a, b = config(lr=1e-2, **fields).build(whole), config(lr=1e-2, **fields).build(sharded)
        for _ in range(3):
            for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
                p.grad = torch.randn_like(p)
                q.grad = torch.distributed.tensor.distribute_tensor(p.grad, mesh, q.placements, src_data_rank=None)
            a.step()
            b.step()
        for (name, p), q in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            assert_close(
                q.full_tensor(), p.detach(), rtol=0, atol=1e-5, msg=lambda text, at=(kind, name): f"{at}: {text}"
            )
        assert optimizer_state_bytes(b) < 0.6 * optimizer_state_bytes(a)
    dist.destroy_process_group()


def test_two_ranks_take_the_step_of_one(tmp_path):
    mp.spawn(compare, args=(tmp_path / "store",), nprocs=RANKS)
