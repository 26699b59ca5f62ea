"""Training only those rows of the token table that the data holds.

The others have no gradient, so an optimizer would carry zeros for them through every step: for a small encoder and
short texts that is a tenth of the time. They stay as they are; weight decay leaves them alone too.

Shapes: V vocabulary, U tokens in use, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.task import Encoded

TABLE = "encoder.embeddings.tokens.weight"


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The rows in use, and the whole table that they came from.

    Args:
        used_U: int64 token ids, ascending; a row's place here is its number in the narrow table.
        table_VD: the whole table as training found it.
    """

    used_U: Tensor
    table_VD: Tensor

    @classmethod
    def narrow(cls, model: TaskModel, documents: Sequence[Encoded]) -> TokenRows:
        """Cut the model's table, in place, to the tokens of `documents`."""
        tokens = model.encoder.embeddings.tokens
        rows = cls(
            used_U=torch.from_numpy(np.unique(np.concatenate([document.ids for document in documents]))),
            table_VD=tokens.weight.detach(),
        )
        model.encoder.embeddings.tokens = nn.Embedding.from_pretrained(
            rows.table_VD[rows.used_U], freeze=not tokens.weight.requires_grad
        )
        return rows

    def follow(self, model: TaskModel) -> None:
        """Cut the table of another model of the same vocabulary, in place, so that it reads the same numbers."""
        tokens = model.encoder.embeddings.tokens
        frozen = not tokens.weight.requires_grad
        model.encoder.embeddings.tokens = nn.Embedding.from_pretrained(tokens.weight.detach()[self.used_U], frozen)

    def renumbered(self, documents: Sequence[Encoded]) -> list[Encoded]:
        """The same documents by the numbers of the narrow table."""
        used_U = self.used_U.numpy()
        return [dataclasses.replace(document, ids=np.searchsorted(used_U, document.ids)) for document in documents]

    def select(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole model's tensors as those of the narrow one."""
        return {**state, TABLE: state[TABLE][self.used_U]}

    def widen(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The narrow model's tensors as those of the whole one."""
        rows_UD = state[TABLE].detach()
        table_VD = self.table_VD.to(rows_UD, copy=True)
        table_VD[self.used_U.to(rows_UD.device)] = rows_UD
        return {**state, TABLE: table_VD}
