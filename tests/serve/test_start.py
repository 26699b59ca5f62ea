from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from terrazzo.config import from_dict
from terrazzo.errors import InputError
from terrazzo.serve import start
from terrazzo.serve.settings import Settings, names_of
from terrazzo.serve.start import bind, budget_threads, serve, url_of
from terrazzo.tasks.label import LabelTask
from terrazzo.testing import tiny_task_folder

SLOW = """
import sys, time
from pathlib import Path
from terrazzo.serve.settings import Settings
from terrazzo.serve.start import serve

assert not {"torch", "fastapi"} & set(sys.modules), "loaded before the port is known to be free"
from terrazzo.serve import engine

run = engine.run

def slow(*arguments):
    heavy = {"transformers", "sklearn", "openvino", "onnxruntime", "matplotlib", "nncf", "torch._dynamo"}
    print(f"running, with {sorted(heavy & set(sys.modules))}", flush=True)
    time.sleep(float(sys.argv[2]))
    return run(*arguments)

engine.run = slow
keys = Path(sys.argv[4]) if sys.argv[4] else None
serve([sys.argv[1]], Settings(port=0, drain_seconds=float(sys.argv[3]), warm_up=False, api_key_file=keys))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_task_folder(tmp_path_factory.mktemp("start") / "mood", LabelTask(classes=("good", "bad")))


@pytest.fixture
def server(folder):
    """Start a server whose batches take so many seconds; gives the process and its address."""
    started = []

    def begin(seconds=0.0, drain=20.0, keys=None):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(folder), str(seconds), str(drain), str(keys or "")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        line = process.stderr.readline()
        ready = re.fullmatch(
            r"ready in \d+\.\d s: (http://127\.0\.0\.1:\d+) serves mood \(embed, rerank, classify\)(; .*)?\n", line
        )
        assert ready and ready.group(2) == (None if keys is None else "; 2 API keys"), line + process.stderr.read()
        return process, ready.group(1)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_taken_port_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(start, "budget_threads", lambda settings: pytest.fail("too late"))
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened on.*--port 0"):
            serve(["anything"], Settings(port=port))


def test_an_address_of_elsewhere_is_refused(monkeypatch):
    elsewhere = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [elsewhere])
    with pytest.raises(InputError, match="name:0 cannot be listened on"):
        bind("name", 0)

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match="--host name: not an address of this machine"):
        bind("name", 0)


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..b", "\udcff"])
def test_names_that_no_host_can_have_are_refused(host, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))  # as the real one begins
    with pytest.raises(InputError, match="not an address of this machine"):
        bind(host, 0)


@pytest.mark.parametrize("given", [b"m\xff", b"m\xff=dir", b"name=m\xff"])
def test_models_are_called_what_can_be_written_down(given):
    with pytest.raises(InputError, match=r"'.*m\\udcff.*': not UTF-8"):
        names_of([os.fsdecode(given)])


def test_settings_that_no_system_can_keep_are_refused():
    for field, value in (("threads", 100_000), ("drain_seconds", 1e12), ("drain_seconds", float("nan"))):
        with pytest.raises(InputError, match=field):
            from_dict(Settings, {field: value}, "here")


def test_addresses_are_told_as_people_type_them():
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with bind("::1", 0) as listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_missing_package_is_told_with_its_mend(monkeypatch):
    monkeypatch.setattr(start, "_PACKAGES", ("json", "no_such_package"))
    with pytest.raises(InputError, match=r"serving needs no_such_package: pip install 'terrazzo\[serve\]'"):
        serve(["anything"])


def test_threads_of_all_libraries_keep_to_the_budget(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "unset")
    budget_threads(Settings(threads=3))
    assert (os.environ["OMP_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]) == ("3", "false")
    monkeypatch.setattr(start, "usable_cores", lambda: 5)
    budget_threads(Settings())
    assert os.environ["MKL_NUM_THREADS"] == "5"


def ask(url):
    return httpx.post(f"{url}/v1/embeddings", json={"input": "the cat"}, timeout=60)


def in_flight(process, url):
    """A request that is being run, and the list that its reply comes into."""
    replies: list = []

    def call():
        try:
            replies.append(ask(url))
        except httpx.TransportError as error:
            replies.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert process.stdout.readline() == "running, with []\n"
    return thread, replies


def test_the_first_signal_lets_requests_end(server):
    process, url = server(seconds=0.7)
    thread, replies = in_flight(process, url)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    thread.join()
    assert replies[0].status_code == 200 and len(replies[0].json()["data"]) == 1
    with pytest.raises(httpx.ConnectError):
        ask(url)
    assert process.stderr.read() == "stopped: every request answered\n"


def test_a_server_with_keys_says_how_many_when_it_is_ready(server, tmp_path):
    (tmp_path / "keys").write_text("correct-horse\nsecond-horse\n")
    _, url = server(keys=tmp_path / "keys")
    assert ask(url).status_code == 401


def test_a_second_signal_ends_at_once(server):
    process, url = server(seconds=30)
    thread, replies = in_flight(process, url)
    process.send_signal(signal.SIGTERM)
    deadline = threading.Event()
    while process.poll() is None and not deadline.wait(0.05):
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    thread.join()
    assert isinstance(replies[0], httpx.TransportError)


def test_the_deadline_ends_what_does_not(server):
    process, url = server(seconds=30, drain=1)
    thread, _ = in_flight(process, url)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and process.stderr.read().endswith("stopped: 1 request not answered\n")
    thread.join()
