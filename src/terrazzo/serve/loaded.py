"""What one model folder becomes in memory: a tokenizer, a head, and its encoder behind an engine that others share.

Shapes: D width.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from terrazzo.api import Model, load
from terrazzo.checkpoint import has_masked_lm_head, load_config, load_tokenizer
from terrazzo.checkpoint.atomic import RECORD, standing
from terrazzo.checkpoint.folder import CONFIG
from terrazzo.checkpoint.tokenizer import special_ids
from terrazzo.config import from_dict, read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.runtime import Runtime, TorchRuntime
from terrazzo.runtime.folder import GRAPHS, RuntimeRecord, is_exported, load_weights, open_runtime, read_record
from terrazzo.runtime.folder import RECORD as RUNTIME
from terrazzo.serve.engine import BatchStats, Engine
from terrazzo.serve.inputs import encode_inputs
from terrazzo.serve.settings import Settings
from terrazzo.tasks import Task
from terrazzo.tasks.forward import Forward, answer, embed, guess, run
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import is_task_folder, load_task_head, model_fingerprint, model_folder
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.tag import TagTask

#: Files of a folder that make the model, with inode, time and size of each.
Signature = tuple[tuple[str, int, int, int], ...]
_SUFFIXES = (".safetensors", ".json", ".xml", ".onnx", ".bin", ".txt")
#: Texts and their number with which an encoder is run before it is served; the first is what `canary` embeds.
_WARM_UP = (("terrazzo", 1), ("a few words to begin with", 8), ("a longer text, as most of them are " * 6, 2))


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a task: the forward that gives its outputs, and the length of document that it was trained with."""

    task: Task
    answer: Forward
    max_len: int


@dataclass(kw_only=True)
class SharedEncoder:
    """An encoder that one or several heads run on, and its engine; `name` is that of the first model on it."""

    key: str
    name: str
    runtime: Runtime
    engine: Engine
    users: int = 0


@dataclass(kw_only=True)
class Loaded:
    """A model folder in memory.

    Args:
        tokenizer: gives model-ready ids, special tokens included.
        head: of the task, where there is one.
        fill: the forward that guesses so many candidates for each mask, where there is a masked-language-model head.
        mask_id: id of the mask token, -1 without.
        fingerprint: of weights, architecture and tokenizer; signature: what tells that the folder was replaced.
        canary: embedding `(D,)` of a fixed text.
        at: seconds since 1970.
    """

    encoder: SharedEncoder
    tokenizer: Tokenizer
    head: Head | None
    fill: Callable[[int], Forward] | None
    mask_id: int
    fingerprint: str
    signature: Signature
    canary: np.ndarray
    at: float = field(default_factory=time.time)
    _users: int = 0
    _idle: asyncio.Event | None = None

    @property
    def engine(self) -> Engine:
        return self.encoder.engine

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.runtime.config

    @property
    def max_len(self) -> int:
        """Tokens of a document of the task, or of a text to embed."""
        return self.config.max_len if self.head is None else self.head.max_len

    @property
    def abilities(self) -> tuple[str, ...]:
        task = () if self.head is None else (self.head.task.kind,)
        return ("embed", "rerank", *task, *(() if self.fill is None else ("fill_mask",)))

    @property
    def labels(self) -> tuple[str, ...]:
        task = None if self.head is None else self.head.task
        if isinstance(task, LabelTask):
            return task.classes
        if isinstance(task, TagTask):
            return task.labels
        if isinstance(task, MultiTask):
            return tuple(f"{problem.name}/{name}" for problem in task.problems for name in problem.classes)
        return ()

    @property
    def problems(self) -> tuple[str, ...]:
        task = None if self.head is None else self.head.task
        return tuple(problem.name for problem in task.problems) if isinstance(task, MultiTask) else ()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request reads from it; only on the event loop."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._idle is not None:
                self._idle.set()

    async def unused(self) -> None:
        """Return when no request reads from it any more; nobody may begin to."""
        self._idle = asyncio.Event()
        if self._users:
            await self._idle.wait()


def signature(path: Path) -> Signature:
    """What tells that the folder was replaced or a file of it rewritten; cheap, () while there is no folder."""
    try:
        files = [file for file in sorted(model_folder(path).iterdir()) if file.suffix in _SUFFIXES]
        stats = [(file.name, file.stat()) for file in files]
    except (OSError, InputError):
        return ()
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


class Encoders:
    """The encoders in use, each once, whatever folders it came from.

    Args:
        observe: is told of every batch with the name of its encoder.
    """

    def __init__(self, settings: Settings, observe: Callable[[str, BatchStats], None]) -> None:
        self.settings, self._observe = settings, observe
        self._known: dict[str, SharedEncoder] = {}
        self._lock, self._threads = threading.Lock(), settings.threads or torch.get_num_threads()

    def known(self, key: str) -> Runtime | None:
        """The encoder of this key, where one is in use."""
        with self._lock:
            return self._known[key].runtime if key in self._known else None

    def acquire(self, key: str, name: str, runtime: Runtime) -> SharedEncoder:
        """The encoder of this key, new or shared."""
        with self._lock:
            shared = self._known.get(key)
            if shared is None:
                engine = Engine(
                    runtime,
                    max_batch_tokens=self.settings.max_batch_tokens,
                    max_queue_tokens=self.settings.max_queue_tokens,
                    max_wait=self.settings.max_wait,
                    threads=self._threads,
                    observe=functools.partial(self._observe, name),
                )
                shared = self._known[key] = SharedEncoder(key=key, name=name, runtime=runtime, engine=engine)
            shared.users += 1
            return shared

    async def release(self, shared: SharedEncoder, seconds: float) -> bool:
        """Give an encoder back; the last one to do so ends its engine. Whether everything ended in time."""
        with self._lock:
            shared.users -= 1
            if shared.users:
                return True
            del self._known[shared.key]
        return await shared.engine.drain(seconds)


def load_folder(name: str, path: Path, encoders: Encoders) -> Loaded:
    """Open a model folder, run it a few times, and put its encoder behind the engine of its like.

    Raises:
        InputError: no model that can be served.
    """
    seen, folder = signature(path), model_folder(path)
    if not (standing(folder) / CONFIG).is_file() and (inner := folders_in(path)):
        raise InputError(f"{path}: is no model folder; it holds model folders: terrazzo serve {' '.join(inner)}")
    model, key, fingerprint = open_model(folder, encoders)
    canary = warm_up(model, path, encoders.settings.warm_up)
    mask_id = special_ids(model.tokenizer).get("mask", -1)
    shared = encoders.acquire(key, name, model.runtime)
    return Loaded(
        encoder=shared,
        tokenizer=model.tokenizer,
        head=head_of(model, shared.runtime),
        fill=None if mask_id < 0 else fill_of(model, folder, shared.runtime),
        mask_id=mask_id,
        fingerprint=fingerprint,
        signature=seen,
        canary=canary,
    )


def folders_in(path: Path) -> list[str]:
    """The model folders right below a folder."""
    found = sorted(path.iterdir()) if path.is_dir() else []
    shown = [inner for inner in found if not inner.name.startswith(".")]
    return [str(one) for one in shown if any((standing(folder) / CONFIG).is_file() for folder in (one, one / "model"))]


def open_model(folder: Path, encoders: Encoders) -> tuple[Model, str, str]:
    """A model; what tells its encoder from others: equal keys, equal hidden states; and the folder's fingerprint.

    An exported encoder that is in use already is not opened again.
    """
    record = None
    if is_exported(folder) and encoders.settings.device is None:
        file = standing(folder) / RUNTIME
        record = from_dict(RuntimeRecord, read_file(file), str(file))  # opening checks the hashes in it
    if record is None or record.runtime == "torch":
        model = load(folder, encoders.settings.device)
        assert isinstance(model.runtime, TorchRuntime)
        own_memory(model.network)
        return model, tensors_key(model.runtime.encoder), model_fingerprint(standing(folder))
    key = record_key(record, load_config(folder))
    runtime = encoders.known(key)
    if runtime is None:
        runtime = open_runtime(folder, threads=encoders.settings.threads)
    else:
        read_record(folder)  # what opening would have checked
    task = load_task_head(folder) if is_task_folder(folder) else None
    tokenizer = load_tokenizer(standing(folder), runtime.config) if task is None else task.tokenizer
    files = {name: stored.sha256 for name, stored in record.files.items() if name != RECORD}
    return Model(functools.partial(load_weights, folder), tokenizer, task, runtime), key, _hash(files)[:16]


@torch.no_grad()
def own_memory(module: nn.Module) -> None:
    """Copy what is mapped from a file, which whoever writes into that file would change under the running server."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def tensors_key(encoder: Encoder) -> str:
    """The key of an encoder in PyTorch: a hash of its shape and of all its numbers."""
    digest = hashlib.sha256(json.dumps(to_dict(encoder.config), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def record_key(record: RuntimeRecord, config: EncoderConfig) -> str:
    """The key of an exported encoder: its runtime, its shape, and the hash of the file that holds its numbers.

    The other file of an OpenVINO graph also holds names, which differ whenever one is made.
    """
    numbers = record.files[GRAPHS[record.runtime][-1]].sha256
    return _hash([record.runtime, record.precision, record.reverted, numbers, to_dict(config)])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def head_of(model: Model, runtime: Runtime) -> Head | None:
    """The head of a model's task, whose encoder from now on is the one of `runtime`."""
    if model.predictor is None:
        return None
    network = model.predictor.model
    own_memory(network.head)
    if isinstance(runtime, TorchRuntime):
        network.encoder = runtime.encoder  # the model's own copy is freed
    return Head(task=network.task, answer=answer(network), max_len=model.predictor.max_len)


def fill_of(model: Model, folder: Path, runtime: Runtime) -> Callable[[int], Forward] | None:
    """Forwards for so many candidates a mask, where the model has a masked-language-model head that sees both sides."""
    if model.predictor is not None or model.config.causal or not has_masked_lm_head(folder):
        return None
    network = model.network
    assert isinstance(network, MaskedLM)
    if isinstance(runtime, TorchRuntime):
        network.encoder = runtime.encoder
    else:
        own_memory(network)
    return functools.cache(functools.partial(guess, network))


def warm_up(model: Model, path: Path, several: bool) -> np.ndarray:
    """Run a few shapes; the embedding `(D,)` of the first text.

    Raises:
        InputError: it is not finite: the weights are damaged.
    """
    forward, canary = embed(), np.zeros(0)
    for text, count in _WARM_UP if several else _WARM_UP[:1]:
        (document,) = encode_inputs(model.tokenizer, [text], model.config.max_len, model.config.vocab_size)
        vectors = run(model.runtime, [document] * count, [forward] * count)
        canary = canary if len(canary) else vectors[0]
    if not np.isfinite(canary).all():
        raise InputError(f"{path}: the encoder gives numbers that are not finite: its weights are damaged")
    return canary
