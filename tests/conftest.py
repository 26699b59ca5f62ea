from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import io
import ipaddress
import random
import socket
import sys

import numpy as np
import pytest
import torch

from terrazzo import cli

torch.set_num_threads(1)


@pytest.fixture
def command_line(monkeypatch, capsysbinary):
    """Run one command line in this process; its exit status, standard output as bytes, and standard error."""

    def run(*arguments, stdin=b"", columns):
        monkeypatch.setattr(sys, "argv", ["terrazzo", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("COLUMNS", str(columns))
        capsysbinary.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        out, err = capsysbinary.readouterr()
        return status, out, err.decode()

    return run


@pytest.fixture(autouse=True)
def same_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Sockets reach this machine alone: Unix sockets and the loopback addresses."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked_connect(self, address):
        _refuse_unless_local(self.family, address)
        return connect(self, address)

    def checked_connect_ex(self, address):
        _refuse_unless_local(self.family, address)
        return connect_ex(self, address)

    def checked_getaddrinfo(host, *arguments, **keywords):
        _refuse_unless_local(socket.AF_INET, (host,))
        return getaddrinfo(host, *arguments, **keywords)

    patch.setattr(socket.socket, "connect", checked_connect)
    patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
    patch.setattr(socket, "getaddrinfo", checked_getaddrinfo)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A tiny prepared corpus that tests share and leave as it is."""
    from terrazzo.testing import tiny_corpus

    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "data")


def _refuse_unless_local(family, address):
    host = address[0] if isinstance(address, tuple) else None
    if family == socket.AF_UNIX or host in ("localhost", "", None):
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == socket.gethostname()
    if not local:
        raise RuntimeError(f"a test wants to reach {host!r}: tests use no network")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
