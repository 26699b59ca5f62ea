"""Start a server, say when it is ready, and end it without losing a request.

What is heavy is imported only after the port is known to be free.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from terrazzo.errors import InputError
from terrazzo.provenance import usable_cores
from terrazzo.serve.settings import Settings, names_of

if TYPE_CHECKING:
    import uvicorn

    from terrazzo.serve.app import Server as App
    from terrazzo.serve.models import Models

#: Seconds for which a connection without a request is kept.
_KEEP_ALIVE = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: What a server needs beyond the base package.
_PACKAGES = ("uvicorn", "fastapi", "orjson", "prometheus_client")


def serve(folders: Sequence[str | Path], settings: Settings | None = None) -> None:
    """Serve model folders (`DIR` or `NAME=DIR`) until SIGINT or SIGTERM.

    The first signal stops new connections and lets requests under way end, for at most `drain_seconds`; a second one
    ends the process at once. When it has stopped, it says on standard error whether every request was answered.

    Raises:
        InputError: an address that cannot be had, a missing package, a folder that cannot be served.
    """
    settings = settings or Settings()
    names_of(folders)
    _check_packages()
    with bind(settings.host, settings.port) as listener:
        budget_threads(settings)
        gc.disable()  # until all is loaded: nothing of it ever goes
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                ended = runner.run(_serve(listener, folders, settings))
        finally:
            gc.enable()
    if not ended:  # a thread is still inside a batch that nobody waits for, and would hold the process
        sys.stdout.flush()
        os._exit(0)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; who connects before the server is ready waits. Port 0 takes a free one.

    Raises:
        InputError: the address is taken, not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # a name that is no host's is not even looked up
        raise InputError(f"--host {host}: not an address of this machine ({error}); 127.0.0.1 always is") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        mend = "take another --port, or --port 0 for any that is free"
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}): {mend}") from None
    return listener


def budget_threads(settings: Settings) -> None:
    """Hold every library to the cores that models may use, before any of them is imported."""
    cores = settings.threads or usable_cores()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # requests are tokenized beside each other already


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket as people type it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(listener: socket.socket, folders: Sequence[str | Path], settings: Settings) -> bool:
    """Load, answer, end; whether every request was answered in time."""
    from terrazzo.serve.models import Models

    opening = asyncio.create_task(Models.open(folders, settings))
    await asyncio.sleep(0)  # models load on a thread, while here the rest is imported
    from terrazzo.serve.app import create_app

    models = await opening
    server = _server(create_app(models, settings), listener, models, settings)
    watching = asyncio.create_task(models.watch())
    await server.serve(sockets=[listener])
    late = len(server.server_state.tasks)  # cancelled, and still there until the loop goes on
    watching.cancel()
    ended = await models.drain(settings.drain_seconds)
    came_to = f"{_count(late, 'request')} not answered" if late else "every request answered"
    print(f"stopped: {came_to}", file=sys.stderr, flush=True)
    return ended


def _server(app: App, listener: socket.socket, models: Models, settings: Settings) -> uvicorn.Server:
    import uvicorn

    from terrazzo.serve.routes_status import abilities

    class Server(uvicorn.Server):
        """Says when it listens; ends with status 0 on the first signal, and at once on the second."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.enable()
            gc.freeze()
            names = ", ".join(f"{model.name} ({', '.join(abilities(model))})" for model in models)
            keys = f"; {_count(len(app.keys), 'API key')}" if app.keys else ""
            print(f"ready in {_age():.1f} s: {url_of(listener)} serves {names}{keys}", file=sys.stderr, flush=True)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + sig)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=_connection_class(),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return Server(config)


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: pip install 'terrazzo[serve]'")


def _connection_class() -> type[asyncio.Protocol] | Literal["auto"]:
    if importlib.util.find_spec("httptools") is None:  # uvicorn's own parser serves too, and trusts its clients
        return "auto"
    from terrazzo.serve.connections import Connection

    return Connection


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # the standard loop serves too
        return None
    return uvloop.new_event_loop


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _age() -> float:
    """Seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
