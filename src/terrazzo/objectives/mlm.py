"""Masked language modelling: hide some tokens, predict them from the rest.

Shapes: T packed tokens, B documents, M masked positions, W words, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from terrazzo.config import config
from terrazzo.data.corpus import SpecialTokens
from terrazzo.data.keyed import below, derive, hash_tokens, mix, threshold
from terrazzo.errors import InputError
from terrazzo.objectives.objective import Loss
from terrazzo.packed import Packed


def choose(
    hashes_T: np.ndarray, tokens_T: np.ndarray, lengths_B: np.ndarray, special_V: np.ndarray, rate: float
) -> np.ndarray:
    """Positions to predict: each token that is not special where its hash falls under `rate`.

    A document that would get none gets its lowest hash, as in BERT's own data preparation, so short documents are not
    read in vain; a document of special tokens alone stays without.

    Returns:
        int64 `(M,)`, ascending.

    Reference: BERT, arXiv 1810.04805, Section 3.1; the minimum of one a document is in its create_pretraining_data.py.
    """
    chosen_M = np.flatnonzero(hashes_T < threshold(rate))
    chosen_M = chosen_M[~special_V[tokens_T[chosen_M]]]
    ends_B = np.cumsum(lengths_B)
    upto_B = np.searchsorted(chosen_M, ends_B)
    empty_B = upto_B == np.concatenate([[0], upto_B[:-1]])
    if not empty_B.any():
        return chosen_M
    starts_B = ends_B[empty_B] - lengths_B[empty_B]
    forced = _lowest(hashes_T, tokens_T, starts_B, lengths_B[empty_B], special_V)
    return np.sort(np.concatenate([chosen_M, forced]))


def word_hashes(
    hashes_T: np.ndarray, tokens_T: np.ndarray, lengths_B: np.ndarray, word_starts_V: np.ndarray
) -> np.ndarray:
    """Give every token the hash of its word's first token, so that the tokens of a word are chosen together.

    A word ends where its document ends, and before every token that `word_starts_V` marks.

    Returns:
        uint64 `(T,)`.

    Reference: the whole-word masking of BERT's 2019 release, create_pretraining_data.py.
    """
    begins_T = word_starts_V[tokens_T]
    begins_T[np.cumsum(lengths_B) - lengths_B] = True
    first_W = np.flatnonzero(begins_T)
    return np.repeat(hashes_T[first_W], np.diff(first_W, append=len(tokens_T)))


def replacements(
    labels_M: np.ndarray,
    hashes_M: np.ndarray,
    mask: int,
    regular_ids: np.ndarray,
    mask_share: float,
    random_share: float,
) -> np.ndarray:
    """What stands at the chosen positions: the mask token, a random one of `regular_ids`, or the original.

    Reference: BERT, arXiv 1810.04805, Section 3.1: 80 % mask, 10 % random, 10 % unchanged.
    """
    # A token was chosen for the upper bits of its hash, so the lower half is still free to decide.
    draw_M = (hashes_M & np.uint64(0xFFFFFFFF)) * 2.0**-32
    out_M = np.where(draw_M < mask_share, mask, labels_M)
    random = np.flatnonzero((draw_M >= mask_share) & (draw_M < mask_share + random_share))
    out_M[random] = regular_ids[below(mix(hashes_M[random]), len(regular_ids))]
    return out_M


@config
class MLMConfig:
    """Masked language modelling.

    Args:
        rate: share of the tokens to predict in training; the default is MosaicBERT's (arXiv 2312.17482).
        eval_rate: the same in evaluation, BERT's, so that losses compare across training rates.
        mask_share: of these, the share replaced by the mask token; 1 for all.
        random_share: of these, the share replaced by a random token; the rest stays as it is, yet is predicted.
        whole_word: mask all tokens of a word or none.
    """

    kind: Literal["mlm"] = "mlm"
    rate: float = 0.30
    eval_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False

    def __post_init__(self) -> None:
        for name in ("rate", "eval_rate"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise InputError(
                f"mask_share {self.mask_share} and random_share {self.random_share} must not be negative, "
                "and together at most 1"
            )

    def build(self, special: SpecialTokens, vocab_size: int, word_starts: np.ndarray | None = None) -> MLM:
        """The objective for a tokenizer; `word_starts` (bool, one a token) is needed for `whole_word` alone."""
        return MLM(self, special, vocab_size, word_starts)


class MaskedModel(Protocol):
    """What the objective needs of a model."""

    def masked_loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over `labels_M` (fp32 scalar), and how many are predicted right (int64 scalar)."""
        ...


class MLM:
    """Masked language modelling for one tokenizer; `rate` may be changed between steps by a schedule."""

    def __init__(
        self, config: MLMConfig, special: SpecialTokens, vocab_size: int, word_starts: np.ndarray | None = None
    ) -> None:
        if config.whole_word and (word_starts is None or len(word_starts) != vocab_size):
            raise InputError(
                "objective.whole_word needs to know which tokens begin a word, and the tokenizer does not tell for "
                f"all {vocab_size} of them: set objective.whole_word to false"
            )
        self.config, self.rate, self.eval_rate = config, config.rate, config.eval_rate
        self._mask = special.mask
        self._special_V = np.zeros(vocab_size, dtype=bool)
        self._special_V[list(special.special_ids)] = True
        self._regular_ids = np.flatnonzero(~self._special_V)
        self._word_starts_V = word_starts if config.whole_word else None

    def corrupt(self, batch: Packed, seed: int, rate: float | None = None, *, evaluation: bool = False) -> Packed:
        """Hide tokens of a batch on the host, keyed by `seed`, document identity, epoch and position alone.

        Args:
            rate: overrides the objective's.
            evaluation: use `eval_rate` instead of `rate`.

        Raises:
            ValueError: the batch has no document identities.
        """
        if batch.documents_B is None:
            raise ValueError("masks are keyed by document: the batch needs documents_B")
        if rate is None:
            rate = self.eval_rate if evaluation else self.rate
        tokens_T, lengths_B = batch.tokens_T.numpy().copy(), np.array(batch.lengths, dtype=np.int64)
        epoch_B = np.zeros_like(lengths_B) if batch.epoch_B is None else batch.epoch_B
        hashes_T = hash_tokens(derive(seed, "mask"), batch.documents_B, epoch_B, lengths_B)
        deciding_T = hashes_T
        if self._word_starts_V is not None:
            deciding_T = word_hashes(hashes_T, tokens_T, lengths_B, self._word_starts_V)
        chosen_M = choose(deciding_T, tokens_T, lengths_B, self._special_V, rate)
        labels_M = tokens_T[chosen_M]
        shares = self.config.mask_share, self.config.random_share
        tokens_T[chosen_M] = replacements(labels_M, hashes_T[chosen_M], self._mask, self._regular_ids, *shares)
        return batch.replace(
            tokens_T=torch.from_numpy(tokens_T),
            masked_M=torch.from_numpy(chosen_M),
            labels_M=torch.from_numpy(labels_M),
        )

    def loss(self, model: MaskedModel, batch: Packed) -> Loss:
        """Cross-entropy summed over the masked tokens; logs the number predicted right as `correct`."""
        assert batch.masked_M is not None, "corrupt the batch first"
        total, correct = model.masked_loss(batch)
        return Loss(sum=total, weight=batch.masked_M.numel(), logs={"correct": correct})


def _lowest(
    hashes_T: np.ndarray, tokens_T: np.ndarray, starts_B: np.ndarray, lengths_B: np.ndarray, special_V: np.ndarray
) -> np.ndarray:
    """The position with the lowest hash among the tokens of each document that are not special; of ties, all."""
    local_starts_B = np.cumsum(lengths_B) - lengths_B
    positions = np.repeat(starts_B - local_starts_B, lengths_B) + np.arange(lengths_B.sum())
    never = np.uint64(2**64 - 1)
    hashes = np.where(special_V[tokens_T[positions]], never, hashes_T[positions])
    lowest_B = np.minimum.reduceat(hashes, local_starts_B)
    return positions[(hashes == np.repeat(lowest_B, lengths_B)) & (hashes != never)]
