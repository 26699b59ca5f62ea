"""The memory of a step, foretold."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest
import torch

from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.optim import AdamWConfig
from terrazzo.packed import Packed
from terrazzo.provenance import peak_memory_bytes
from terrazzo.train import Sampling, memory
from terrazzo.train.distributed import Ranks
from terrazzo.train.memory import choose_micro_tokens, estimate

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
MODEL = mosaicbert("mini", 4096)


def peak_of_two_steps(tokens, answer):
    """Bytes that two training steps add to a fresh process at their peak."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak inherited from the fork
    before = peak_memory_bytes()
    model = MaskedLM(MODEL)
    optimizer = AdamWConfig(lr=1e-3).build(model)
    ids = torch.randint(MODEL.vocab_size, (tokens,))
    chosen = torch.arange(0, tokens, 3)
    batch = Packed(tokens_T=ids, lengths=(128,) * (tokens // 128), masked_M=chosen, labels_M=ids[chosen])
    for _ in range(2):
        model.masked_loss(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    answer.send(peak_memory_bytes() - before)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
def test_the_estimate_is_within_a_factor_of_two_of_a_step():
    tokens = 2048
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["terrazzo.testing", "torch._dynamo"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=peak_of_two_steps, args=(tokens, send), daemon=True)
    process.start()
    assert receive.poll(240)
    measured = receive.recv()
    process.join()
    assert 0.5 < estimate(MODEL, CPU, bf16=False).total(tokens) / measured < 2, measured


def test_the_estimate_counts_what_it_names():
    small, large = estimate(MODEL, CPU, bf16=False), estimate(MODEL.replace(depth=8), CPU, bf16=False)
    assert large.per_token > 1.9 * small.per_token and large.states > small.states and large.logits == small.logits
    assert estimate(MODEL, CPU, bf16=True).per_token * 2 == small.per_token
    assert small.total(10) - small.total(0) == 10 * small.per_token


def test_a_model_that_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * 2**30)
    huge = mosaicbert("large", 30_000)
    with pytest.raises(InputError) as caught:
        choose_micro_tokens(huge, Sampling(max_len=512), ALONE, bf16=False)
    figures = re.search(
        r"needs about ([\d.]+) GiB for micro-batches of 512 tokens, 3.0 GiB are free", str(caught.value)
    )
    assert float(figures[1]) == pytest.approx(estimate(huge, CPU, bf16=False).total(512) / 2**30, abs=0.1)
    assert "--size" in str(caught.value)


def test_wanted_micro_batches_are_taken_or_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2 * 2**30)
    assert choose_micro_tokens(MODEL, Sampling(micro_tokens=300), ALONE, bf16=False) == 300
    assert choose_micro_tokens(MODEL, Sampling(micro_tokens=30), ALONE, bf16=False) == 128, "one document must fit"
    with pytest.raises(InputError, match="micro-batches of 99999999 tokens"):
        choose_micro_tokens(MODEL, Sampling(micro_tokens=99_999_999), ALONE, bf16=False)


def test_micro_batches_fit_half_the_free_memory_a_step_and_the_speed(monkeypatch):
    def chosen(free, ranks=ALONE, **sampling):
        monkeypatch.setattr(memory, "available_bytes", lambda device: free)
        return choose_micro_tokens(MODEL, Sampling(**sampling), ranks, bf16=False)

    tight, own = chosen(2**30), estimate(MODEL, CPU, bf16=False)
    assert own.total(tight) <= 2**29 < own.total(tight + 1)
    assert chosen(2**40, batch_tokens=2**20) == memory.FAST_TOKENS["cpu"]
    assert chosen(2**40, batch_tokens=1000) == 1100
    assert chosen(2**40, ranks=Ranks(0, 2, CPU, local_size=2), batch_tokens=1000) == 550
    assert chosen(2 * 2**30, ranks=Ranks(0, 2, CPU, local_size=2)) == tight, "ranks of one machine share its memory"
