"""Options that several commands about tasks share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terrazzo.errors import InputError

if TYPE_CHECKING:
    from terrazzo.tasks.predict import Predictor

Model = Annotated[Path, typer.Option(help="What finetune wrote, or the task folder inside.")]
Fields = Annotated[
    str | None,
    typer.Option(help="Columns that are called otherwise: text=tweet,label=mood. By number without a header."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; the GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens that run at a time; left out, as many as run fastest.")]


def fields_of(text: str | None) -> dict[str, str]:
    """`text=tweet,label=mood` as a mapping.

    Raises:
        InputError: a part without `=`.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for name, equals, column in pairs:
        if not equals or not column.strip():
            raise InputError(f"--fields {name}: write it as field=column, e.g. --fields text=tweet,label=mood")
    return {name.strip(): column.strip() for name, _, column in pairs}


def predictor_of(model: Path, device: str | None, threads: int | None) -> Predictor:
    """The task model in a folder, ready to answer.

    Raises:
        InputError: not a model folder, or one without the head of a task.
    """
    import torch

    import terrazzo
    from terrazzo.tasks.model import HOW_TO_FINETUNE

    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: take at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = terrazzo.load(model, device or ("cuda" if torch.cuda.is_available() else None))
    if loaded.predictor is None:
        raise InputError(f"{model}: a model without the head of a task: {HOW_TO_FINETUNE}")
    return loaded.predictor
