"""Models without values, to be given tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from terrazzo.nn import Encoder, EncoderConfig, MaskedLM

_DRAWS = frozenset(("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"))


def empty_model(config: EncoderConfig, with_head: bool = True, backend: str | None = None) -> MaskedLM | Encoder:
    """A model on the meta device: shapes and no memory; `load_state_dict(state, assign=True)` gives it its tensors."""
    with without_values():
        return MaskedLM(config, backend) if with_head else Encoder(config, backend)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules made inside have shapes and no memory: on the meta device, their random initialisation left out."""
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Leaves random initialisation out: on the meta device it does nothing, and takes a second to load a compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func.__name__ in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
