"""Masks: right frequencies, never special tokens, keyed by document alone, whole words together."""

import numpy as np
import pytest
import torch

from terrazzo.config import from_dict
from terrazzo.data.corpus import SpecialTokens
from terrazzo.data.keyed import derive, hash_tokens
from terrazzo.errors import InputError
from terrazzo.objectives import MLM, OBJECTIVES, MLMConfig
from terrazzo.packed import Packed

SPECIAL = SpecialTokens(pad=0, unk=7, cls=2, sep=3, mask=4)
VOCAB = 200
SPECIAL_IDS = {0, 7, 2, 3, 4}
#: tokens from 100 on continue a word
WORD_STARTS = np.arange(VOCAB) < 100


def batch_of(num_documents: int = 400, longest: int = 60, seed: int = 0, shortest: int = 1) -> Packed:
    draw = np.random.default_rng(seed)
    texts = [draw.integers(5, VOCAB, draw.integers(shortest, longest + 1)) for _ in range(num_documents)]
    return Packed.from_sequences(
        [[2, *text, 3] for text in texts],
        documents_B=np.arange(num_documents, dtype=np.uint64) + 1000,
        epoch_B=np.zeros(num_documents, dtype=np.int64),
    )


def mlm(**fields: object) -> MLM:
    return MLMConfig(**fields).build(SPECIAL, VOCAB, WORD_STARTS)


def select(batch: Packed, rows: list[int]) -> Packed:
    parts = torch.split(batch.tokens_T, list(batch.lengths))
    return Packed.from_sequences(
        [parts[i].numpy() for i in rows], documents_B=batch.documents_B[rows], epoch_B=batch.epoch_B[rows]
    )


def slow_masked(batch: Packed, seed: int, rate: float) -> list[int]:
    """Token by token, document by document."""
    hashes = hash_tokens(derive(seed, "mask"), batch.documents_B, batch.epoch_B, np.array(batch.lengths))
    start, found = 0, []
    for length in batch.lengths:
        allowed = [i for i in range(start, start + length) if int(batch.tokens_T[i]) not in SPECIAL_IDS]
        own = [i for i in allowed if int(hashes[i]) < int(rate * 2**64)]
        found += own or sorted(allowed, key=lambda i: hashes[i])[:1]
        start += length
    return found


def test_masked_positions_agree_with_the_slow_reference() -> None:
    batch = batch_of()
    for rate in (0.02, 0.3):
        out = mlm().corrupt(batch, 11, rate)
        assert out.masked_M.tolist() == slow_masked(batch, 11, rate)
        torch.testing.assert_close(out.labels_M, batch.tokens_T[out.masked_M], rtol=0, atol=0)
        untouched = np.setdiff1d(np.arange(batch.num_tokens), out.masked_M.numpy())
        assert torch.equal(out.tokens_T[untouched], batch.tokens_T[untouched])


def test_shares_of_mask_random_and_kept() -> None:
    batch = batch_of(4000, 100, shortest=60)
    out = mlm().corrupt(batch, 1)
    text = sum(int(t) not in SPECIAL_IDS for t in batch.tokens_T)
    m = len(out.masked_M)
    assert abs(m / text - 0.3) < 5 * np.sqrt(0.21 / text)
    now, was = out.tokens_T[out.masked_M].numpy(), out.labels_M.numpy()
    kept_by_chance = 1 / (VOCAB - len(SPECIAL_IDS))
    assert abs((now == 4).mean() - 0.8) < 5 * np.sqrt(0.16 / m)
    assert abs((now == was).mean() - (0.1 + 0.1 * kept_by_chance)) < 5 * np.sqrt(0.09 / m)
    random = now[(now != 4) & (now != was)]
    assert not set(random.tolist()) & SPECIAL_IDS
    counts = np.bincount(random, minlength=VOCAB)[sorted(set(range(VOCAB)) - SPECIAL_IDS)]
    expected = len(random) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * np.sqrt(2 * len(counts))
    position = np.concatenate([np.arange(n) for n in batch.lengths])[out.masked_M.numpy()]
    by_place = np.bincount(position)[1:60]
    assert ((by_place - by_place.mean()) ** 2 / by_place.mean()).sum() < 59 + 5 * np.sqrt(118)


def test_all_mask_and_none_mask() -> None:
    batch = batch_of(50)
    out = mlm(mask_share=1.0, random_share=0.0).corrupt(batch, 1)
    assert (out.tokens_T[out.masked_M] == 4).all()
    out = mlm(mask_share=0.0, random_share=0.0).corrupt(batch, 1)
    assert torch.equal(out.tokens_T, batch.tokens_T) and len(out.masked_M)


def test_masks_belong_to_the_document_whatever_it_is_batched_with() -> None:
    batch, rows = batch_of(40), [31, 4, 17]
    for objective in (mlm(), mlm(whole_word=True), mlm(rate=0.01)):
        whole, part = objective.corrupt(batch, 5), objective.corrupt(select(batch, rows), 5)
        split = torch.split(whole.tokens_T, list(batch.lengths))
        assert torch.equal(part.tokens_T, torch.cat([split[i] for i in rows]))


def test_seed_and_epoch_draw_new_masks() -> None:
    batch, objective = batch_of(100), mlm()
    outs = [objective.corrupt(batch, 1), objective.corrupt(batch, 2)]
    outs.append(objective.corrupt(batch.replace(epoch_B=batch.epoch_B + 1), 1))
    masks = [set(out.masked_M.tolist()) for out in outs]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.2 < len(masks[a] & masks[b]) / len(masks[a]) < 0.4
    assert torch.equal(objective.corrupt(batch, 1).tokens_T, outs[0].tokens_T)


def test_rate_is_scheduled_by_attribute_and_evaluation_has_its_own() -> None:
    batch, objective = batch_of(400, shortest=30), mlm()
    text = sum(int(t) not in SPECIAL_IDS for t in batch.tokens_T)
    objective.rate = 0.5
    assert abs(len(objective.corrupt(batch, 1).masked_M) / text - 0.5) < 0.03
    assert abs(len(objective.corrupt(batch, 1, evaluation=True).masked_M) / text - 0.15) < 0.03


def test_a_document_of_special_tokens_gets_no_mask_and_a_short_one_gets_one() -> None:
    batch = Packed.from_sequences(
        [[2, 7, 3], [2, 50, 3], [2, 7, 60, 7, 3]],
        documents_B=np.arange(3, dtype=np.uint64),
        epoch_B=np.zeros(3, np.int64),
    )
    out = mlm(rate=1e-9).corrupt(batch, 3)
    assert out.masked_M.tolist() == [4, 8]
    none = mlm().corrupt(select(batch, [0]), 3)
    assert none.masked_M.tolist() == [] and none.labels_M.dtype == torch.int64


def test_whole_words_are_masked_together_and_not_across_documents() -> None:
    batch = batch_of(300, 80)
    out = mlm(whole_word=True).corrupt(batch, 9)
    masked = np.zeros(batch.num_tokens, dtype=bool)
    masked[out.masked_M.numpy()] = True
    words: list[list[int]] = []
    tokens = batch.tokens_T.tolist()
    for i, token in enumerate(tokens):
        continues = token >= 100 and tokens[i - 1] not in SPECIAL_IDS
        if token in SPECIAL_IDS:
            continue
        words[-1].append(i) if continues else words.append([i])
    hit = [masked[word].any() for word in words]
    assert all(masked[word].all() for word, any_ in zip(words, hit, strict=True) if any_)
    assert masked.sum() == sum(len(word) for word, any_ in zip(words, hit, strict=True) if any_)
    assert abs(np.mean(hit) - 0.3) < 5 * np.sqrt(0.21 / len(words)) + 0.01
    assert any(len(word) > 2 for word, any_ in zip(words, hit, strict=True) if any_)


def test_a_word_ends_with_its_document_even_without_special_tokens() -> None:
    batch = Packed.from_sequences(
        [[50, 101], [102, 103]] * 200, documents_B=np.arange(400, dtype=np.uint64), epoch_B=np.zeros(400, np.int64)
    )
    objective, odd = mlm(whole_word=True, rate=0.5), list(range(1, 400, 2))
    together = objective.corrupt(batch, 2).tokens_T.reshape(400, 2)
    alone = objective.corrupt(select(batch, odd), 2).tokens_T.reshape(200, 2)
    assert torch.equal(together[odd], alone)


def test_loss_is_the_model_sum_with_the_number_of_masked_tokens() -> None:
    class Model:
        def masked_loss(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor]:
            return batch.labels_M.sum().float(), (batch.labels_M > 50).sum()

    out = mlm().corrupt(batch_of(20), 1)
    loss = mlm().loss(Model(), out)
    assert loss.weight == len(out.masked_M) and loss.sum == out.labels_M.sum()
    assert loss.logs["correct"] == (out.labels_M > 50).sum()


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="rate must lie between 0 and 1"):
        from_dict(OBJECTIVES["mlm"], {"rate": 30})
    with pytest.raises(InputError, match="mask_share 0.8 and random_share 0.3"):
        MLMConfig(random_share=0.3)
    with pytest.raises(InputError, match="whole_word needs to know"):
        MLMConfig(whole_word=True).build(SPECIAL, VOCAB, None)
    with pytest.raises(ValueError, match="needs documents_B"):
        mlm().corrupt(Packed.from_sequences([[2, 50, 3]]), 1)
