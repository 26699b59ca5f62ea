"""Fill-mask predictions on held-out documents, for a person to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from terrazzo.data import Corpus
from terrazzo.nn import MaskedLM
from terrazzo.packed import Packed


@torch.no_grad()
def fill_mask_samples(model: MaskedLM, corpus: Corpus, count: int = 8, max_tokens: int = 48, top: int = 5) -> list[Any]:
    """Hide two tokens of each of the first held-out documents and show the model's best guesses.

    A causal model reads a document up to one token, the only one hidden, and guesses it.

    Returns:
        Per document `{"text", "truth": [token], "predictions": [[{"token", "probability"}]]}`.
    """
    model = model.eval()
    device = next(model.parameters()).device
    special, tokenizer = corpus.special, corpus.tokenizer
    samples = []
    for index in range(min(count, corpus.heldout.num_documents)):
        ids = np.asarray(corpus.heldout.document(index)[:max_tokens], dtype=np.int64)
        places = np.unique([2 * len(ids) // 3] if model.config.causal else [len(ids) // 3, 2 * len(ids) // 3])
        truth, hidden = ids[places], ids.copy()
        hidden[places] = special.mask
        if model.config.causal:
            hidden = hidden[: places[0] + 1]
            batch = Packed.from_sequences([[special.cls, *hidden[:-1]]], masked_M=torch.from_numpy(places))
        else:
            batch = Packed.from_sequences([[special.cls, *hidden, special.sep]], masked_M=torch.from_numpy(places + 1))
        best = model(batch.to(device)).float().softmax(-1).topk(top)
        samples.append(
            {
                "text": tokenizer.decode(hidden.tolist(), skip_special_tokens=False),
                "truth": [tokenizer.decode([int(t)], skip_special_tokens=False) for t in truth],
                "predictions": [
                    [
                        {"token": tokenizer.decode([int(i)], skip_special_tokens=False), "probability": float(p)}
                        for p, i in zip(row_p, row_i, strict=True)
                    ]
                    for row_p, row_i in zip(best.values, best.indices, strict=True)
                ],
            }
        )
    return samples
