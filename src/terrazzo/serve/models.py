"""The models that a server holds: each folder by its name, encoders shared, folders reloaded when they are replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.serve.engine import BatchStats
from terrazzo.serve.inputs import Tokenized, TooLong, Truncate, Usage
from terrazzo.serve.loaded import Encoders, Loaded, Signature, load_folder, signature
from terrazzo.serve.served import CannotDo, Limits, Served, TooManyGuesses
from terrazzo.serve.settings import Settings, names_of

__all__ = [
    "CannotDo",
    "Limits",
    "Models",
    "Served",
    "Tokenized",
    "TooLong",
    "TooManyGuesses",
    "Truncate",
    "UnknownModel",
    "Usage",
]
log = logging.getLogger("terrazzo.serve")
#: Is told of every batch with the name of its encoder, which is that of the first model on it.
Hook = Callable[[str, BatchStats], None]


class UnknownModel(InputError):
    """No model of that name is served."""


class Models:
    """The served models by name; `await Models.open(folders, settings)` makes one.

    Attributes:
        hooks: told of every batch, on the thread that ran it; append to it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hooks: list[Hook] = []
        self._served: dict[str, Served] = {}
        self._encoders = Encoders(settings, self._observe)
        self._seen: dict[str, Signature] = {}
        self._failed: dict[str, Signature] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._draining = False

    @classmethod
    async def open(cls, folders: Sequence[str | Path], settings: Settings | None = None) -> Models:
        """Load every folder, on threads beside the event loop.

        Raises:
            InputError: names that are not distinct, or a folder that cannot be served.
        """
        models, named = cls(settings or Settings()), names_of(folders)
        try:
            for name, path in named.items():
                loaded = await asyncio.to_thread(load_folder, name, path, models._encoders)
                models._served[name] = Served(name, path, loaded)
        except BaseException:
            await models.drain(models.settings.drain_seconds)
            raise
        return models

    def __getitem__(self, name: str) -> Served:
        served = self._served.get(name)
        if served is None:
            raise UnknownModel(f"no model {name!r} is served here: {nearest(name, self._served)}")
        return served

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self._draining

    def ready(self) -> Mapping[str, str | None]:
        """Why each model takes no requests, None where it does. Every model has embedded a text when it was loaded."""
        return {name: "stopping" if self._draining else None for name in self._served}

    async def reload(self, name: str) -> None:
        """Load the folder of a model again and answer from it; requests under way end on what they began with.

        Raises:
            UnknownModel; InputError: the folder cannot be served; the model goes on as it was.
        """
        served = self[name]
        async with self._locks.setdefault(name, asyncio.Lock()):
            began = time.monotonic()
            loaded = await asyncio.to_thread(load_folder, name, served.folder, self._encoders)
            task = asyncio.create_task(self._retire(served.replace(loaded)))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            log.info("model %s reloaded in %.1f s: %s", name, time.monotonic() - began, loaded.fingerprint)

    async def poll(self) -> list[str]:
        """Reload the models whose folders were replaced and have not changed since the last poll, and name them.

        A folder that cannot be served is logged once, and its model goes on as it was.
        """
        reloaded = []
        for served in list(self):
            before, seen = self._seen.get(served.name), await asyncio.to_thread(signature, served.folder)
            self._seen[served.name] = seen
            if seen != before or seen in ((), served.loaded.signature, self._failed.get(served.name)):
                continue
            try:
                await self.reload(served.name)
                reloaded.append(served.name)
            except Exception as error:
                self._failed[served.name] = seen
                known = isinstance(error, InputError)
                log.error("model %s stays as it was: %s", served.name, error, exc_info=None if known else error)
        return reloaded

    async def watch(self) -> None:
        """Poll for ever, every `reload_seconds`."""
        while self.settings.reload_seconds:
            await asyncio.sleep(self.settings.reload_seconds)
            await self.poll()

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, and end what is under way; whether all of it ended within `seconds`."""
        self._draining = True
        engines = {id(served.engine): served.engine for served in self}.values()
        ended = await asyncio.gather(*(engine.drain(seconds) for engine in engines), self._retired(seconds))
        return all(ended)

    async def _retire(self, old: Loaded) -> None:
        await old.unused()
        await self._encoders.release(old.encoder, self.settings.drain_seconds)

    async def _retired(self, seconds: float) -> bool:
        """Whether what was replaced ends within `seconds`."""
        if not self._retiring:
            return True
        _, late = await asyncio.wait(self._retiring, timeout=seconds)
        return not late

    def _observe(self, name: str, stats: BatchStats) -> None:
        for hook in self.hooks:
            hook(name, stats)
