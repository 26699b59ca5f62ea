"""An encoder over padded batches, in which every operation runs on padding too: what packing is measured against.

Shapes: B documents, S padded length, D width, M selected tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from terrazzo.nn import EncoderConfig
from terrazzo.packed import Packed
from terrazzo.runtime.graph import Layout, TracedEncoder, refuse_too_long


def padded_inputs(batch: Packed, config: EncoderConfig, select_M: Tensor | None = None) -> dict[str, np.ndarray]:
    """A batch as `PaddedEncoder` takes it: int64 "ids" `(B, S)`, "lengths" `(B,)`, "types" `(B, S)` where the config
    has any, and "rows" `(M,)`: places in the flattened batch of the tokens at `select_M`, or of all.

    Raises:
        InputError: a document longer than a learned position table.
    """
    refuse_too_long(batch, config)
    batch = batch.to("cpu")
    rows_T = batch.document_T * batch.max_len + batch.positions_T
    inputs = {"ids": batch.to_padded(batch.tokens_T), "lengths": torch.tensor(batch.lengths)}
    if config.token_types > 1:
        types_T = batch.token_types_T
        inputs["types"] = torch.zeros_like(inputs["ids"]) if types_T is None else batch.to_padded(types_T)
    inputs["rows"] = rows_T if select_M is None else rows_T[select_M.cpu()]
    return {name: values.numpy() for name, values in inputs.items()}


class PaddedLayout(Layout):
    """Tokens as `(B, S, ...)`, the real ones on the left; a selection is of places in the flattened batch."""

    def spread(self, x: Tensor) -> Tensor:
        return x

    def join(self, x_BSD: Tensor, select_M: Tensor | None) -> Tensor:
        return x_BSD if select_M is None else self.chosen(x_BSD, select_M)

    def chosen(self, x: Tensor, select_M: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, select_M)


class PaddedEncoder(TracedEncoder):
    """The same parameters as an encoder's, over `(B, S)` ids whose real tokens stand on the left."""

    def forward(self, ids: Tensor, lengths: Tensor, types: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Hidden states `(B, S, D)`, or `(M, D)` of the places `rows` of the flattened `(B * S)` batch.

        What stands behind a document's end is undefined. With a selection the last block computes its projections and
        MLP for those tokens alone.

        Args:
            ids: int64 `(B, S)` token ids, padded with any id on the right.
            lengths: int64 `(B,)` tokens of each document.
            types: int64 `(B, S)` segment ids; None means all zero.
            rows: int64 `(M,)`.
        """
        table, offset, size = self.embeddings.positions, self.config.position_offset, ids.shape[1]
        learned = None if table is None else table.weight[offset:][:size]
        return self.layers(self.embed(ids, types, learned), PaddedLayout(self.config, lengths, size), rows)
