"""Zero-shot similarity of sentence pairs: the cosine of mean-pooled encodings against human scores.

Shapes: T packed tokens, B documents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.tasks.batches import by_budget
from terrazzo.tasks.task import Example
from terrazzo.tasks.texts import encode_alone


def sentence_vectors(
    encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str], max_len: int | None = None, batch_tokens: int = 8192
) -> np.ndarray:
    """Means over all tokens of a text, special ones included, scaled to length 1: float32 `(len(texts), D)`."""
    encoder.eval()
    most = encoder.config.max_len if max_len is None else max_len
    documents = [document.ids for document in encode_alone(tokenizer, texts, most)]
    device = encoder.embeddings.tokens.weight.device
    vectors = np.zeros((len(documents), encoder.config.width), dtype=np.float32)
    with torch.inference_mode():
        for rows in by_budget([len(ids) for ids in documents], batch_tokens):
            batch = Packed.from_sequences([documents[row] for row in rows]).to(device)
            lengths_B = batch.cu_seqlens.diff().long()
            means_BD = torch.segment_reduce(encoder(batch).float(), "mean", lengths=lengths_B, unsafe=True)
            vectors[rows] = F.normalize(means_BD).cpu().numpy()
    return vectors


def similarities(
    encoder: Encoder, tokenizer: Tokenizer, examples: Sequence[Example], max_len: int | None = None
) -> np.ndarray:
    """Cosine of the two texts of each pair; a text that occurs more than once is encoded once."""
    pairs = [(example.text, example.other or "") for example in examples]
    number = {text: row for row, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    vectors = sentence_vectors(encoder, tokenizer, list(number), max_len)
    left, right = (vectors[[number[pair[side]] for pair in pairs]] for side in (0, 1))
    return np.asarray((left * right).sum(axis=1))
