"""Minimal pairs of grammar judged by pseudo-log-likelihood: does the model prefer the sentence that people accept?

Shapes: L tokens of a sentence, M masked copies of a batch, V vocabulary.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from terrazzo.data import SpecialTokens
from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM
from terrazzo.packed import Packed
from terrazzo.tasks.texts import encode_alone

#: Pairs whose masked copies are sorted by length and packed together; more only hold more memory.
_PAIRS_AT_A_TIME = 200
_PAIR_FIELDS = ("sentence_good", "sentence_bad")


@dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """Two sentences that differ in one point of grammar.

    Args:
        good, bad: the acceptable sentence and the other one.
        paradigm: the point itself; phenomenon: the family it belongs to.
    """

    good: str
    bad: str
    paradigm: str
    phenomenon: str


@dataclass(frozen=True, kw_only=True)
class MinimalPairScores:
    """Share of pairs in which the good sentence is the likelier one; a tie is an error.

    Args:
        accuracy: mean over paradigms.
        half_width: of its 95 % interval, from the number of pairs of each paradigm.
        pairs: how many were judged.
    """

    accuracy: float
    half_width: float
    pairs: int
    phenomena: dict[str, float]
    paradigms: dict[str, float]


def pseudo_log_likelihoods(
    model: MaskedLM, sentences: Sequence[np.ndarray], mask: int, batch_tokens: int = 8192
) -> np.ndarray:
    """Sum over a sentence's tokens of log p(token | all the others), float64, one for each sentence.

    Every token but the first and the last, which are special, is masked in a copy of its own; the copies of all
    sentences are packed together, longest first.

    Args:
        sentences: int64 `(L,)` ids each, special tokens included.
        mask: id of the mask token.
        batch_tokens: tokens that run at a time, or one copy where it is longer.

    Reference: arXiv 1910.14659, Equation 2.
    """
    totals, device = np.zeros(len(sentences)), model.encoder.embeddings.tokens.weight.device
    with torch.inference_mode():
        for owners, batch in _masked_copies(sentences, mask, batch_tokens):
            logits_MV, labels_M = model(batch.to(device)).float(), batch.labels_M
            assert labels_M is not None
            log_p_M = -F.cross_entropy(logits_MV, labels_M.to(device), reduction="none").double()
            np.add.at(totals, owners, log_p_M.cpu().numpy())
    return totals


def _masked_copies(
    sentences: Sequence[np.ndarray], mask: int, batch_tokens: int
) -> Iterator[tuple[np.ndarray, Packed]]:
    """Batches of sentences with one token masked, and the sentence that each copy belongs to."""
    order = np.argsort([-len(sentence) for sentence in sentences], kind="stable")
    slots = [(row, place) for row in order for place in range(1, len(sentences[row]) - 1)]
    first = 0
    while first < len(slots):
        count = max(1, batch_tokens // len(sentences[slots[first][0]]))
        chosen = slots[first : first + count]
        yield np.asarray([row for row, _ in chosen]), _packed(sentences, chosen, mask)
        first += count


def _packed(sentences: Sequence[np.ndarray], slots: Sequence[tuple[int, int]], mask: int) -> Packed:
    lengths = np.asarray([len(sentences[row]) for row, _ in slots])
    tokens = np.concatenate([sentences[row] for row, _ in slots]).astype(np.int64)
    masked = np.cumsum(lengths) - lengths + np.asarray([place for _, place in slots])
    labels = tokens[masked]
    tokens[masked] = mask
    return Packed(
        tokens_T=torch.from_numpy(tokens),
        lengths=tuple(lengths.tolist()),
        masked_M=torch.from_numpy(masked),
        labels_M=torch.from_numpy(labels),
    )


def score_minimal_pairs(
    model: MaskedLM,
    tokenizer: Tokenizer,
    pairs: Sequence[MinimalPair],
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> MinimalPairScores:
    """Judge all pairs; `progress` is called with the pairs done and their number.

    Raises:
        InputError: a sentence is longer than the model reads, or the model is causal.
    """
    if model.config.causal:
        raise InputError("minimal pairs: this model is causal; they are judged by hiding tokens between others")
    mask, right, done = SpecialTokens.of(tokenizer).mask, defaultdict(list), 0
    phenomenon = {pair.paradigm: pair.phenomenon for pair in pairs}
    model.eval()
    for first in range(0, len(pairs), _PAIRS_AT_A_TIME):
        part = pairs[first : first + _PAIRS_AT_A_TIME]
        good, bad = (_ids(tokenizer, texts, model.config.max_len) for texts in _columns(part))
        scores = pseudo_log_likelihoods(model, [*good, *bad], mask, batch_tokens)
        for pair, better in zip(part, scores[: len(part)] > scores[len(part) :], strict=True):
            right[pair.paradigm].append(float(better))
        done += len(part)
        if progress is not None:
            progress(done, len(pairs))
    return _summary(right, phenomenon)


def _columns(pairs: Sequence[MinimalPair]) -> tuple[list[str], list[str]]:
    return [pair.good for pair in pairs], [pair.bad for pair in pairs]


def _ids(tokenizer: Tokenizer, texts: list[str], max_len: int) -> list[np.ndarray]:
    documents = encode_alone(tokenizer, texts, max_len)
    for text, document in zip(texts, documents, strict=True):
        if document.truncated:
            size = len(document.ids) + document.truncated
            raise InputError(f"{text[:60]!r}: {size} tokens, the model reads {max_len}; leave this pair out")
    return [document.ids for document in documents]


def _summary(right: dict[str, list[float]], phenomenon: dict[str, str]) -> MinimalPairScores:
    paradigms = {name: fmean(values) for name, values in sorted(right.items())}
    families = defaultdict(list)
    for name, accuracy in paradigms.items():
        families[phenomenon[name]].append(accuracy)
    variances = [p * (1 - p) / len(right[name]) for name, p in paradigms.items()]
    return MinimalPairScores(
        accuracy=fmean(paradigms.values()),
        half_width=1.96 * sum(variances) ** 0.5 / len(paradigms),
        pairs=sum(map(len, right.values())),
        phenomena={name: fmean(values) for name, values in sorted(families.items())},
        paradigms=paradigms,
    )


def read_minimal_pairs(folder: str | Path, per_paradigm: int | None = None) -> list[MinimalPair]:
    """The pairs of a folder of JSON lines in BLiMP's format, the first `per_paradigm` of each file.

    Raises:
        InputError: no .jsonl files, or a line that is not a pair.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise InputError(f"{folder}: no .jsonl files of minimal pairs; download BLiMP (github.com/alexwarstadt/blimp)")
    return [pair for file in files for pair in _file_pairs(file, per_paradigm)]


def _file_pairs(file: Path, limit: int | None) -> Iterator[MinimalPair]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and number > limit:
                return
            try:
                row = json.loads(line)
                good, bad = (row[name] for name in _PAIR_FIELDS)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file}, line {number}: not a minimal pair ({error}); it needs {' and '.join(_PAIR_FIELDS)}"
                ) from None
            paradigm = row.get("UID", file.stem)
            yield MinimalPair(good=good, bad=bad, paradigm=paradigm, phenomenon=row.get("linguistics_term", paradigm))
