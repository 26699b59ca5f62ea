"""The gradient of one step on one process or shared out over several, as the training loop computes it.

`python -m recipes.unpadded_bert.ranks DATA OUT RANK WORLD_SIZE MEETING` is one rank; rank 0 writes the gradient to OUT.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from terrazzo.data import Corpus, Loader, Stream
from terrazzo.errors import RunError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.objectives import MLMConfig
from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks, StepModule, gradient_sync, wrap

PIECES, MAX_LEN = 32, 128


def prepared(corpus: Corpus) -> tuple[StepModule, Stream]:
    """The same small model and stream in every process."""
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=corpus.vocab_size, width=64, depth=2, num_heads=2, mlp_width=128, max_len=MAX_LEN, dropout=0.0
    )
    objective = MLMConfig().build(corpus.special, corpus.vocab_size)
    stream = Stream(corpus.train, corpus.special, max_len=MAX_LEN, pieces_per_step=PIECES, seed=0)
    return StepModule(MaskedLM(config), objective), stream


def first_batches(module: StepModule, stream: Stream, rank: int, world_size: int) -> list[Packed]:
    """This rank's balanced, masked share of step 0."""
    loader = Loader(
        stream, module.objective, rank=rank, world_size=world_size, micro_tokens=PIECES * MAX_LEN, workers=0
    )
    return next(loader).batches


def gradient(corpus: Corpus, ranks: Ranks) -> Tensor:
    """All gradients of step 0 in one vector; the loss is the sum over masked tokens over their global number."""
    module, stream = prepared(corpus)
    wrapped = wrap(module, ranks, "ddp")
    batches = first_batches(module, stream, ranks.rank, ranks.world_size)
    (weight,) = ranks.sum(sum(_masked(batch) for batch in batches))
    for index, batch in enumerate(batches):
        with gradient_sync(wrapped, enabled=index == len(batches) - 1):
            loss, _ = wrapped(batch)
        (loss * (ranks.world_size / weight)).backward()
    return flat_gradient(module)


def mean_of_means(corpus: Corpus, world_size: int) -> Tensor:
    """Plain data parallelism: the mean over ranks of each rank's own mean, on documents in stream order."""
    module, stream = prepared(corpus)
    plan = stream.step(0)
    for part in torch.arange(PIECES).chunk(world_size):
        rows = part.numpy()
        batch = module.objective.corrupt(stream.pieces.pack(plan.pieces[rows], plan.epochs[rows]), stream.seed)
        loss, _ = module(batch)
        (loss / (_masked(batch) * world_size)).backward()
    return flat_gradient(module)


def flat_gradient(module: StepModule) -> Tensor:
    """All gradients end to end."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def over_processes(corpus: Corpus, work: Path, world_size: int) -> Tensor:
    """The gradient that `world_size` gloo processes agree on.

    Raises:
        RunError: a process failed; its output is in the message.
    """
    out, meeting = work / "gradient.pt", work / "meeting"
    for stale in (out, meeting):
        stale.unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipes.unpadded_bert.ranks", str(corpus.path), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(meeting)],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RunError(f"a rank ended with status {process.returncode}:\n{output}")
    agreed: Tensor = torch.load(out, weights_only=True)
    return agreed


def main(data: str, out: str, rank: int, world_size: int, meeting: str) -> None:
    """Compute this rank's part and agree with the others."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    try:
        ranks = Ranks(rank, world_size, torch.device("cpu"), dist.group.WORLD)
        agreed = gradient(Corpus.open(data), ranks)
        if ranks.is_main:
            torch.save(agreed, out)
        ranks.barrier()
    finally:
        dist.destroy_process_group()


def _masked(batch: Packed) -> int:
    return 0 if batch.masked_M is None else batch.masked_M.numel()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
