"""How far a runtime is from the same model in fp32, over given documents.

Shapes: T packed tokens, B documents, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.config import config
from terrazzo.packed import Packed
from terrazzo.runtime.contract import Runtime

#: The answers of a task's head on a runtime, one a row, and how alike two of them are, from 0 to 1.
Answers = Callable[[Runtime], Sequence[Any]]
Alike = Callable[[Sequence[Any], Sequence[Any]], float]


@config
class Agreement:
    """Cosines between mean-pooled vectors of the same documents.

    Args:
        mean, worst: over the documents.
        documents: that were compared.
        answers: share of a task's answers that are the same; None without a task.
        asked: how many answers there are; None without a task.
    """

    mean: float
    worst: float
    documents: int
    answers: float | None = None
    asked: int | None = None

    def reaches(self, cosine: float, answers: float) -> bool:
        """Whether the mean is at least `cosine` and the share `answers`, or one answer in all that differs."""
        same = 1.0 if self.answers is None else self.answers
        return self.mean >= cosine and same >= min(answers, 1 - 1 / (self.asked or self.documents))

    def __str__(self) -> str:
        said = f"cosine to fp32 mean {self.mean:.5f}, worst {self.worst:.5f} over {self.documents:,} texts"
        if self.answers is None:
            return said
        asked = self.asked or self.documents
        same = self.answers * asked
        whole = abs(same - round(same)) < 1e-6  # of words' tags it is not: some of a row's may differ
        return f"{said}; {f'{same:,.0f}' if whole else f'{self.answers:.1%}'} of {asked:,} answers equal"


class Judge:
    """Compares runtimes with a reference.

    Args:
        batches: the documents.
        answers: what a task's head says on a runtime, where there is one; alike: how answers are compared.
    """

    def __init__(
        self, reference: Runtime, batches: Sequence[Packed], answers: Answers | None = None, alike: Alike | None = None
    ) -> None:
        self.batches, self._answers, self._alike = batches, answers, alike
        self._vectors_BD = pooled(reference, batches)
        self._reference_answers = None if answers is None else answers(reference)

    def __call__(self, runtime: Runtime) -> Agreement:
        """The agreement of `runtime` with the reference."""
        cosines_B = F.cosine_similarity(pooled(runtime, self.batches).double(), self._vectors_BD.double())
        same = asked = None
        if self._answers is not None and self._alike is not None and self._reference_answers is not None:
            same, asked = self._alike(self._reference_answers, self._answers(runtime)), len(self._reference_answers)
        mean, worst = float(cosines_B.mean()), float(cosines_B.min())
        return Agreement(mean=mean, worst=worst, documents=len(cosines_B), answers=same, asked=asked)


@torch.inference_mode()
def pooled(runtime: Runtime, batches: Sequence[Packed]) -> Tensor:
    """The mean over the tokens of every document, fp32 `(B, D)`."""
    vectors = []
    for batch in batches:
        lengths_B = torch.tensor(batch.lengths)
        hidden_TD = runtime(batch).float().cpu()
        vectors.append(torch.segment_reduce(hidden_TD, "mean", lengths=lengths_B, unsafe=True))
    return torch.cat(vectors)
