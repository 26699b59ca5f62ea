"""The server from the command line."""

from __future__ import annotations

import ipaddress
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from terrazzo.cli.app import app


class Log(StrEnum):
    """How a server writes down what happens."""

    text = "text"
    json = "json"


def _number(value: float) -> float:
    if math.isnan(value):  # which no limit keeps out
        raise typer.BadParameter("nan is no number")
    return value


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="Model folders: DIR, or NAME=DIR.", metavar="DIR...")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8080,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that clients must know, one a line.")] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that run together; the runtime's best if left out.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Tokens that may wait; beyond it clients get 429.")] = 262_144,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of one request.")] = 2048,
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, max=1024, callback=_number, help="Megabytes of one request.")
    ] = 8.0,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU cores for the models; all if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where PyTorch runs: cpu or cuda.")] = None,
    reload: Annotated[bool, typer.Option(help="Take up folders that are replaced.")] = True,
    drain_seconds: Annotated[
        float, typer.Option(min=0, max=86_400, callback=_number, help="How long requests may end on SIGTERM.")
    ] = 30.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may call the server; may be repeated.")
    ] = None,
    page: Annotated[bool, typer.Option(help="The page at / to try the models.")] = True,
    log: Annotated[Log, typer.Option(help="json writes a line a request, too.")] = Log.text,
) -> None:
    """Serve models over HTTP: embeddings, classes, tags, answers, rankings; OpenAI clients work unchanged."""
    from terrazzo.config import from_dict
    from terrazzo.serve.keys import Keys
    from terrazzo.serve.logs import log_to_stderr
    from terrazzo.serve.settings import Settings
    from terrazzo.serve.start import serve as start

    values = {
        "host": host,
        "port": port,
        "api_key_file": api_key_file,
        "allow_origins": tuple(allow_origin or ()),
        "max_batch_tokens": max_batch_tokens,
        "max_queue_tokens": max_queue,
        "max_texts": max_texts,
        "max_body_bytes": round(max_body_mb * 2**20),
        "device": device,
        "threads": threads,
        "drain_seconds": drain_seconds,
        "access_log": "json" if log is Log.json else "none",
        "page": page,
    }
    settings = from_dict(Settings, values | ({} if reload else {"reload_seconds": 0}), "command line")
    if not Keys.read(api_key_file) and not _is_this_machine(host):
        where = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        print(f"warning: anyone who reaches {where} may use it: give --api-key-file", file=sys.stderr)
    log_to_stderr(log.value)
    start(models, settings)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
