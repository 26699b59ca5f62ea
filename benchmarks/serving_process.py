"""Servers as subprocesses: started, waited for, measured from outside, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.serving_client import HOST, ask_once, get

_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that runs while the `with` block does.

    Args:
        command: arguments after `python -m`; the port is added.
        start_seconds: how long it may take until it is ready.
    """

    def __init__(self, *command: str, start_seconds: float = 120.0) -> None:
        self.command, self.start_seconds = command, start_seconds
        self.port = free_port()

    def __enter__(self) -> Server:
        begin = time.perf_counter()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.command, "--port", str(self.port)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        try:
            asyncio.run(self._until_ready(begin))
        except BaseException:
            self.process.kill()
            raise
        self.ready_seconds = time.perf_counter() - begin
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self.log.close()

    async def _until_ready(self, begin: float) -> None:
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}:\n{self.output()}")
            if time.perf_counter() - begin > self.start_seconds:
                raise TimeoutError(f"the server was not ready in {self.start_seconds:.0f} s:\n{self.output()}")
            try:
                if (await ask_once(self.port, get("/health/ready"))).status == 200:
                    return
            except ConnectionError:
                pass  # nobody listens yet
            await asyncio.sleep(0.005)

    def output(self) -> str:
        """The end of what it wrote on its standard output and error."""
        self.log.seek(0)
        return self.log.read()[-4000:]

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, then its exit status.

        Raises:
            subprocess.TimeoutExpired: it did not end; it is killed.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def rss_bytes(self) -> int:
        """Memory that it holds now, file pages that it has touched included."""
        return _status_kb(self.process.pid, "VmRSS") * 1024

    @property
    def private_bytes(self) -> int:
        """Memory that it holds now without pages of files."""
        return _status_kb(self.process.pid, "RssAnon") * 1024

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def _status_kb(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {key}")


def ours(folders: Sequence[Path], *options: str) -> Server:
    """`terrazzo serve FOLDERS OPTIONS`."""
    return Server("terrazzo", "serve", *map(str, folders), *options)


def peer() -> Server:
    """sentence-transformers behind FastAPI, in uvicorn's defaults without the access log."""
    return Server("uvicorn", "benchmarks.serving_peer:app", "--no-access-log")
