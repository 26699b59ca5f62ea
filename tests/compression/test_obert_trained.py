"""oBERT on a trained model: the loss that the gradients are of rises less than by magnitude."""

import copy

import torch

from terrazzo.compression.gradients import TaskGradients
from terrazzo.compression.masks import Masks, single_matrices
from terrazzo.compression.unstructured import ObertConfig, magnitude, obert
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.label import LabelTask

TASK = LabelTask.learn([Example(text="x", target="a"), Example(text="x", target="b")])


def documents(count, seed):
    """Documents of six tokens; the class says whether token 1 comes before token 2, and is wrong for one in eight."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 12, (count, 6), generator=draw)
    places = torch.stack([torch.randperm(5, generator=draw)[:2] + 1 for _ in range(count)])
    rows.scatter_(1, places, torch.tensor([1, 2]).expand(count, 2))
    rows[:, 0] = 0
    labels = (places[:, 0] < places[:, 1]) ^ (torch.rand(count, generator=draw) < 0.125)
    return rows, labels.long()


def packed(rows, labels):
    return Packed(tokens_T=rows.flatten(), lengths=(rows.shape[1],) * len(rows), labels_B=labels)


def trained(seed):
    torch.manual_seed(seed)
    config = mosaicbert("tiny", 16, width=16, depth=2, num_heads=2, mlp_width=24, dropout=0.0, attention_dropout=0.0)
    model, batch = TaskModel(Encoder(config), TASK), packed(*documents(128, seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    return model.eval(), batch


def mean_loss(model, batch):
    loss = model.task_loss(batch, SupervisedConfig())
    return loss.sum / loss.weight


def test_the_loss_rises_less_than_by_magnitude():
    dense, batch = trained(seed=0)
    rows, before, rises = batch.tokens_T.view(128, 6), mean_loss(dense, batch).item(), {}
    for kind in ("magnitude", "single", "greedy"):
        model = copy.deepcopy(dense)
        views = single_matrices(model.encoder)
        if kind == "magnitude":
            Masks(model.encoder, magnitude(views, 0.6))
        else:
            examples = [packed(rows[i : i + 1], batch.labels_B[i : i + 1]) for i in range(0, 128, 2)]
            obert(views, TaskGradients(model, examples), 0.6, ObertConfig(block=24, damp=1e-6, prices=kind))
        rises[kind] = mean_loss(model, batch).item() - before
    assert rises["greedy"] < 0.5 * rises["single"] and rises["single"] < 0.5 * rises["magnitude"]
