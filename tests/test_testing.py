"""What we promise to those who test their own methods: the checks pass what is right and fail what is broken."""

from __future__ import annotations

import os

import pytest
import torch

from terrazzo.data import Corpus
from terrazzo.optim import AdamWConfig
from terrazzo.optim.adamw import AdamWConfig as Given
from terrazzo.testing import check_method, start_ranks, tiny_corpus, tiny_run, tiny_texts, train_on_ranks


def broken(monkeypatch, change):
    """Make AdamW's step do something else afterwards."""
    build = Given.build

    def other(self, model):
        optimizer = build(self, model)
        step = optimizer.step

        def changed():
            step()
            change(optimizer)

        optimizer.step = changed
        return optimizer

    monkeypatch.setattr(Given, "build", other)


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_a_tiny_corpus_is_a_whole_one_and_always_the_same(tmp_path):
    first, second = tiny_corpus(tmp_path / "a", documents=50), tiny_corpus(tmp_path / "b", documents=50)
    assert first.fingerprint == second.fingerprint != tiny_corpus(tmp_path / "c", documents=50, seed=1).fingerprint
    assert (first.train.num_documents, first.heldout.num_documents) == (50, 5)
    again = Corpus.open(first.path, verify=True)
    assert again.tokenizer.decode(again.train.document(3)) == tiny_texts(55)[3]
    lengths = first.train.lengths
    assert lengths.max() > 2 * lengths.min()


def test_check_method_notices_what_does_not_learn(tmp_path):
    with pytest.raises(AssertionError, match="does not learn"):
        check_method(tmp_path, steps=10, optimizer=AdamWConfig(lr=1e-9))


def test_check_method_notices_a_method_that_is_not_repeatable(tmp_path, monkeypatch):
    def jitter(optimizer):
        seed = int.from_bytes(os.urandom(4), "little")
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in parameters(optimizer):
                p.mul_(1 + 1e-4 * torch.rand((), generator=noise))

    broken(monkeypatch, jitter)
    with pytest.raises(AssertionError, match="resuming changes the losses"):
        check_method(tmp_path, steps=10, learns=-9.0, optimizer=AdamWConfig(lr=1e-3))


def test_check_method_notices_state_that_a_checkpoint_does_not_hold(tmp_path, monkeypatch):
    def shrink_ever_more(optimizer):
        optimizer.forgotten = getattr(optimizer, "forgotten", 0) + 1
        with torch.no_grad():
            for p in parameters(optimizer):
                p.mul_(1 - 1e-3 * optimizer.forgotten)

    broken(monkeypatch, shrink_ever_more)
    with pytest.raises(AssertionError, match="resuming changes"):
        check_method(tmp_path, steps=10, learns=-9.0, optimizer=AdamWConfig(lr=1e-3))


def test_a_rank_that_fails_is_reported(tmp_path):
    config = tiny_run(tmp_path / "no-data", tmp_path / "run")
    with pytest.raises(AssertionError, match=r"exit statuses of the ranks: \[1, 1\]"):
        train_on_ranks(config)
    (alone,) = start_ranks(config, ranks=1)
    alone.join()
    assert alone.exitcode == 1
