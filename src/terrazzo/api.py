"""A trained model in use: `terrazzo.load(folder)`, then `encode`, `fill_mask` and `predict`.

Shapes: T packed tokens, B documents, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from terrazzo.checkpoint import load_model, load_tokenizer
from terrazzo.config import nearest
from terrazzo.data import SpecialTokens
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.nn.backends import BACKENDS
from terrazzo.runtime import Runtime, TorchRuntime
from terrazzo.runtime.folder import is_exported, load_weights, open_runtime, read_record
from terrazzo.tasks import Encoded, Result
from terrazzo.tasks.forward import POOLINGS, Pooling, Prediction, embed, fill, run, run_chunks
from terrazzo.tasks.model import (
    HOW_TO_FINETUNE,
    LoadedTask,
    is_task_folder,
    load_task_head,
    load_task_model,
    model_folder,
)
from terrazzo.tasks.predict import Predictor, Row
from terrazzo.tasks.texts import encode_alone, frame

#: Texts tokenized at a time, so that a long list never exists in tokenized form beside its ids.
_TEXTS_AT_A_TIME = 2048


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Model:
    """Open a model folder, ours or a published one, for use; what pretrain and finetune wrote stands for its model.

    What `export` wrote runs on its own runtime; every other folder, and one asked for on a device, in a dtype or with a
    backend, on PyTorch.

    Args:
        device: where it runs; None is the CPU.
        dtype: of its parameters; None is fp32.
        backend: attention backend by name; None takes the device's default.

    Raises:
        InputError: not a model folder, no tokenizer in it, a tokenizer of another model, a damaged task, a damaged or
            partial export, an unknown backend or device.
    """
    try:
        chosen = torch.device(device or "cpu")
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device={str(device)!r}: take 'cpu', 'cuda' or 'cuda:1'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r}: PyTorch sees no GPU here; leave it out for the CPU")
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"backend={backend!r}: {nearest(backend, BACKENDS)}")
    folder = model_folder(path)
    if is_exported(folder):
        if (device, dtype, backend) == (None, None, None):
            return _exported(folder)
        read_record(folder, run="torch")
    if is_task_folder(folder):
        loaded = load_task_model(folder, device, dtype or torch.float32, backend)
        return Model(loaded.model.encoder, loaded.tokenizer, loaded)
    network = load_model(folder, device, dtype or torch.float32, backend)
    return Model(network, load_tokenizer(folder, network.config))


def _exported(folder: Path) -> Model:
    """What `export` wrote, on its runtime; its weights in PyTorch are read when something asks for them."""
    runtime = open_runtime(folder)
    task = load_task_head(folder) if is_task_folder(folder) else None
    tokenizer = load_tokenizer(folder, runtime.config) if task is None else task.tokenizer
    return Model(functools.partial(load_weights, folder), tokenizer, task, runtime)


class Model:
    """An encoder with its tokenizer, in inference mode.

    Args:
        network: the encoder, with or without the masked-language-model head, or what reads it when it is first needed.
        tokenizer: gives model-ready ids, special tokens included.
        task: the task whose head was trained on the encoder, where there is one.
        runtime: what runs the encoder; None is PyTorch.
    """

    def __init__(
        self,
        network: MaskedLM | Encoder | Callable[[], MaskedLM | Encoder],
        tokenizer: Tokenizer,
        task: LoadedTask | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._network, self.tokenizer = network, tokenizer
        self.runtime: Runtime = TorchRuntime(self.encoder) if runtime is None else runtime
        self.predictor = None if task is None else Predictor(task.model, tokenizer, task.max_len, runtime=self.runtime)

    @property
    def network(self) -> MaskedLM | Encoder:
        """The model in PyTorch; of an exported folder, read when first asked for."""
        if not isinstance(self._network, (MaskedLM, Encoder)):
            self._network = self._network()
        return self._network.eval()

    @property
    def config(self) -> EncoderConfig:
        return self.runtime.config

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder if isinstance(self.network, MaskedLM) else self.network

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def encode(
        self,
        texts: Sequence[str],
        pooling: Pooling = "mean",
        normalize: bool = False,
        max_len: int | None = None,
        batch_tokens: int | None = None,
    ) -> np.ndarray:
        """One vector a text, float32 `(len(texts), D)`, in the order of the texts.

        Texts are sorted by length and packed without padding; a vector does not depend on the other texts.

        Args:
            pooling: "mean" and "max" run over all tokens of a text, special ones included, as sentence-transformers has
                it; "cls" takes the first.
            normalize: scale every vector to length 1.
            max_len: tokens, special ones included, after which a text is cut; None is the model's own limit.
            batch_tokens: tokens that run at a time, or one text where it is longer; None takes the runtime's.

        Raises:
            InputError: a bare string, something that is not text, an unknown pooling, or a `max_len` beyond the model.
        """
        if pooling not in POOLINGS:
            raise InputError(f"pooling={pooling!r}: known: {', '.join(POOLINGS)}")
        texts = _checked(texts)
        chunks = self._tokenized(texts, self._checked_max_len(max_len))
        vectors, row = np.zeros((len(texts), self.config.width), dtype=np.float32), 0
        for values in run_chunks(self.runtime, chunks, embed(pooling, normalize), batch_tokens):
            vectors[row : row + len(values)] = values
            row += len(values)
        return vectors

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` likeliest tokens for every mask token in `text`, best first.

        Raises:
            InputError: the model has no masked-language-model head or sees earlier tokens alone, or the text has no
                mask within the model's length.
        """
        if not isinstance(self.network, MaskedLM):
            raise InputError("fill_mask: this model has no masked-language-model head, it can only encode")
        if self.config.causal:
            raise InputError("fill_mask: this model is causal, it sees nothing behind a mask; it can only encode")
        if top_k < 1:
            raise InputError(f"top_k={top_k}: must be at least 1")
        mask = SpecialTokens.of(self.tokenizer).mask
        ((document,),) = self._tokenized(_checked([text]), self.config.max_len)
        ids, positions = document.ids, np.flatnonzero(document.ids == mask)
        if not len(positions):
            name = self.tokenizer.id_to_token(mask)
            raise InputError(
                f"fill_mask: no {name} in the first {len(ids)} tokens of {text!r}: write it where to guess"
            )
        forward = fill(self.network, self.tokenizer, top_k)
        (masks,) = run(self.runtime, [Encoded(ids=ids, positions=positions)], [forward])
        return list(masks)

    def predict(self, texts: Sequence[Row], batch_tokens: int | None = None) -> list[Result]:
        """What the fine-tuned task says about each text, in order: `.label`, `.score`, `.probabilities` or `.spans`.

        A row that cannot be answered gives a result with `.error` and stops nothing.

        Args:
            texts: strings; pairs as tuples; dicts with the fields of a row ("question" and "context", "tokens",
                "problem") where the task needs them.
            batch_tokens: tokens that run at a time, or one document where it is longer; None takes the runtime's.

        Raises:
            InputError: the model was not fine-tuned, or one bare string instead of a list.
        """
        if self.predictor is None:
            raise InputError(f"predict: this model has no head of a task: {HOW_TO_FINETUNE}")
        if isinstance(texts, (str, Mapping)):
            raise InputError(f"predict takes a list of rows, got {str(texts)[:40]!r} alone: write predict([...])")
        return self.predictor.predict(texts, batch_tokens)

    def _tokenized(self, texts: list[str], max_len: int) -> Iterator[list[Encoded]]:
        for first in range(0, len(texts), _TEXTS_AT_A_TIME):
            yield encode_alone(self.tokenizer, texts[first : first + _TEXTS_AT_A_TIME], max_len)

    def _checked_max_len(self, max_len: int | None) -> int:
        least = frame(self.tokenizer, pair=False).num_special + 1
        wanted = self.config.max_len if max_len is None else max_len
        if wanted < least:
            raise InputError(f"max_len={wanted}: a text needs at least {least} tokens with its special ones")
        if self.config.positions == "learned" and wanted > self.config.max_len:
            raise InputError(f"max_len={wanted}: the model has {self.config.max_len} learned positions, and no more")
        return wanted


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"encode takes a list of texts, got the one text {texts[:40]!r}: write encode([text])")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__} {text!r}: every text must be a string")
    return texts
