"""Fine-tune an encoder to classify short texts on the packed path: mean pooling and a linear layer.

Shapes: T packed tokens, B documents, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.nn import Encoder
from terrazzo.optim import Schedule
from terrazzo.packed import Packed

Rows = list[tuple[str, int]]


@dataclass
class Classifier:
    """An encoder with a linear layer on its mean-pooled output."""

    encoder: Encoder
    head: nn.Linear
    tokenizer: Tokenizer

    def logits(self, batch: Packed) -> Tensor:
        """`(B, C)` for a packed batch."""
        x_TD = self.encoder(batch)
        sums_BD = x_TD.new_zeros(batch.num_documents, x_TD.shape[1]).index_add(0, batch.document_T, x_TD)
        return self.head(sums_BD / torch.tensor(batch.lengths)[:, None])


def fine_tune(
    encoder: Encoder,
    folder: Path,
    rows: Rows,
    num_classes: int,
    *,
    passes: int,
    seed: int,
    lr: float = 1e-3,
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Classifier:
    """Train all weights on `rows` with AdamW, warm-up and linear decay; deterministic given the seed.

    `progress` hears how many steps are done, and of how many.
    """
    torch.manual_seed(seed)
    classifier = Classifier(encoder.train(), nn.Linear(encoder.config.width, num_classes), _tokenizer(folder))
    parameters = [*encoder.parameters(), *classifier.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    schedule = Schedule(kind="linear", warmup=0.1, final=0.0)
    ids = [e.ids for e in classifier.tokenizer.encode_batch([text for text, _ in rows])]
    labels = torch.tensor([label for _, label in rows])
    total, step = passes * -(-len(rows) // batch), 0
    for _ in range(passes):
        for chosen in torch.randperm(len(rows)).split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule((step + 1) / total)
            logits = classifier.logits(Packed.from_sequences([ids[i] for i in chosen.tolist()]))
            F.cross_entropy(logits, labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress(step, total)
    return classifier


@torch.inference_mode()
def accuracy(classifier: Classifier, rows: Rows, batch: int = 256) -> float:
    """Share of `rows` classified right."""
    classifier.encoder.eval()
    right = 0
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        ids = [e.ids for e in classifier.tokenizer.encode_batch([text for text, _ in part])]
        guesses = classifier.logits(Packed.from_sequences(ids)).argmax(1)
        right += int((guesses == torch.tensor([label for _, label in part])).sum())
    return right / len(rows)


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    return tokenizer
