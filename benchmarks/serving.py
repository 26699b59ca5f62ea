"""The server under 64 clients, beside sentence-transformers behind FastAPI and beside `encode` without a server.

python -m benchmarks.serving --data-root DATASETS --work WORK
python -m benchmarks.serving --data-root DATASETS --work WORK --only-export
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

import terrazzo
from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from benchmarks.serving_client import Checked, Load, ask_once, check, get, load, post, run
from benchmarks.serving_models import calibration, exported, exported_heads, texts_of
from benchmarks.serving_process import Server, ours, peer
from recipes.runner import data_root
from recipes.tuning import minilm

CLIENTS = 64
#: Requests before the clock starts.
WARM_UP = 200
PEER = "sentence-transformers behind FastAPI, one encode a request"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one server did in its turn.

    Args:
        rate: texts a second.
        cpu: of the server, in seconds a text; client_cpu of the clients.
        p50, p95: of the replies, in seconds; live: of every GET /health/live meanwhile.
        batch: mean number of texts in a batch, None where the server has no such metric.
        rss: bytes after the warm-up and after the load.
        checked: the replies against what they should have been.
    """

    rate: float
    cpu: float
    client_cpu: float
    p50: float
    p95: float
    live: list[float]
    batch: float | None
    rss: tuple[int, int]
    ready: float
    checked: Checked


def turn(
    server: Server,
    requests: Sequence[bytes],
    count: int,
    checking: Callable[[Load], Checked],
    batch_size: Callable[[str], tuple[float, float]] | None = None,
) -> Turn:
    """Start a server, warm it up, put it under load, and stop it."""
    with server:
        run(load(server.port, requests, CLIENTS, WARM_UP))
        rss, cpu = server.rss_bytes, server.cpu_seconds
        before = batch_size(_metrics(server)) if batch_size else None
        done = run(load(server.port, requests, CLIENTS, count, probe=True))
        replies = len(done.replies)
        cpu = server.cpu_seconds - cpu
        after = batch_size(_metrics(server)) if batch_size else None
        p50, p95 = np.percentile(done.latencies, [50, 95])
        return Turn(
            rate=count / done.seconds,
            cpu=cpu / replies,
            client_cpu=done.cpu_seconds / replies,
            p50=float(p50),
            p95=float(p95),
            live=done.probes,
            batch=None if before is None or after is None else (after[0] - before[0]) / (after[1] - before[1]),
            rss=(rss, server.rss_bytes),
            ready=server.ready_seconds,
            checked=checking(done),
        )


def _metrics(server: Server) -> str:
    return run(ask_once(server.port, get("/metrics"))).body.decode()


def our_batches(metrics: str) -> tuple[float, float]:
    """Texts that ran so far, and the batches that they ran in, from our /metrics."""
    total, batches = (
        sum(float(value) for value in re.findall(rf"^terrazzo_batch_documents_{end}\S* (\S+)$", metrics, re.M))
        for end in ("sum", "count")
    )
    return total, batches


def offline(folder: Path, texts: Sequence[str], rounds: int) -> tuple[list[float], np.ndarray]:
    """Seconds that `encode` takes for all texts, `rounds` times, and the vectors; a first round is warm-up."""
    model = terrazzo.load(folder)
    vectors_ND = model.encode(texts, normalize=True)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        model.encode(texts, normalize=True)
        seconds.append(time.perf_counter() - begin)
    return seconds, vectors_ND


def offline_alone(folder: Path, texts: Sequence[str], rounds: int) -> tuple[list[float], np.ndarray]:
    """`offline` in a fresh process of its own, with the threads that a process takes by itself, as the server's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(offline, folder, list(texts), rounds).result()


def peer_check(done: Load) -> Checked:
    """The peer's replies are counted alone: its vectors are its own."""
    bad = sum(reply is None or reply.status != 200 for _, reply in done.replies)
    return Checked(lost=bad, swapped=0, deviation=0.0, statuses={"200": len(done.replies) - bad})


def measure(
    folder: Path, int8: Path, texts: Sequence[str], rounds: int, count: int, peer_count: int
) -> dict[str, list[Any]]:
    """All sides in turns, `rounds` times.

    The server with either model, `encode`, the server without batches, both forms of the peer.
    """
    body = {"model": folder.name, "encoding_format": "base64"}
    requests = [post("/v1/embeddings", body | {"input": text}) for text in texts]
    requests8 = [post("/v1/embeddings", body | {"model": int8.name, "input": text}) for text in texts]
    plain = [post("/embed", {"text": text}) for text in texts]
    in_loop = [post("/embed-in-loop", {"text": text}) for text in texts]
    _, expected_ND = offline_alone(folder, texts, 0)
    checking = partial(check, expected_ND=expected_ND)
    checking8 = partial(check, expected_ND=offline_alone(int8, texts, 0)[1])
    names = ("server", "encode", "server int8", "unbatched", "peer", "peer in loop")
    sides: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        sides["server"].append(turn(ours([folder]), requests, count, checking, our_batches))
        sides["encode"].append(offline_alone(folder, texts, max(1, count // len(texts) // 2))[0])
        sides["peer"].append(turn(peer(), plain, peer_count, peer_check))
        sides["server int8"].append(turn(ours([int8]), requests8, count, checking8, our_batches))
        one = ours([folder], "--max-batch-tokens", "1")
        sides["unbatched"].append(turn(one, requests, peer_count, checking, our_batches))
        if number < 2:
            sides["peer in loop"].append(turn(peer(), in_loop, peer_count, peer_check))
        print(
            f"round {number + 1}: "
            + ", ".join(f"{name} {_rates(side, texts)[-1]:.0f}/s" for name, side in sides.items())
        )
    return sides


def _rates(side: Sequence[Any], texts: Sequence[str]) -> list[float]:
    return [one.rate if isinstance(one, Turn) else len(texts) / median(one) for one in side]


def starts(folder: Path, times: int = 5) -> list[float]:
    """Seconds from the start of the process until /health/ready says so, each of several times."""
    seconds = []
    for _ in range(times):
        with ours([folder]) as server:
            seconds.append(server.ready_seconds)
    return seconds


def memory(folders: Sequence[Path]) -> dict[str, int]:
    """Bytes that a server of these models holds once each has answered, in all and without pages of files."""
    with ours(folders) as server:
        for folder in folders:
            row = {"text": "a text of a few words"}
            if folder.name in ("relevance", "likeness"):
                row = {"text": "a text of a few words", "text_pair": "and another"}
            path = "/v1/tag" if folder.name == "names" else "/v1/classify"
            run(ask_once(server.port, post(path, {"model": folder.name, "input": row["text"]})))
        return {"rss": server.rss_bytes, "private": server.private_bytes}


def speed_rows(sides: dict[str, list[Any]], texts: Sequence[str]) -> list[Row]:
    """S1, S2, S7 and S8: rates beside the peer's, beside `encode`, beside one text at a time."""
    rates = {name: _rates(side, texts) for name, side in sides.items()}
    mean_batch = fmean(one.batch for one in sides["server"])
    client_ms = 1000 * median(one.client_cpu for one in sides["server"])
    server_ms = 1000 * median(one.cpu for one in sides["server"])
    each = ", ".join(f"{name} {median(values):.0f}" for name, values in rates.items())

    def row(
        row_id: str,
        metric: str,
        other: str,
        name: str,
        marks: tuple[float | None, float | None],
        note: str,
        side: str = "server",
    ) -> Row:
        scale = 100 if row_id == "S2" else 1
        value, low, high = (scale * v for v in bootstrap_interval(rates[side], rates[name]))
        unit = "%" if row_id == "S2" else "x"
        floor, goal = marks
        return Row(
            id=row_id,
            metric=metric,
            peer=other,
            floor=floor,
            goal=goal,
            value=value,
            low=low,
            high=high,
            unit=unit,
            note=note,
        )

    texts_note = f"texts/s, medians: {each}; the clients share the cores with the server"
    return [
        row("S1", "server, 64 clients with single texts, fp32, texts/s", PEER, "peer", (3.0, 6.0), texts_note),
        row(
            "S1b",
            "server, 64 clients with single texts, fp32, texts/s",
            PEER + ", in an `async def`",
            "peer in loop",
            (None, None),
            "the peer's event loop answers nothing else meanwhile",
        ),
        row(
            "S8",
            "server, 64 clients with single texts, exported with --precision int8, texts/s",
            PEER,
            "peer",
            (3.0, 6.0),
            "the peer runs fp32",
            side="server int8",
        ),
        row(
            "S2",
            "server against `encode` without a server, same texts",
            "terrazzo.load(...).encode(texts), a process of its own",
            "encode",
            (80.0, 90.0),
            f"CPU a text: server {server_ms:.2f} ms, clients {client_ms:.2f} ms, on the same cores",
        ),
        row(
            "S7",
            "batches: gain over one text at a time",
            "our server with --max-batch-tokens 1",
            "unbatched",
            (1.0, None),
            f"{mean_batch:.1f} texts a batch in the mean",
        ),
    ]


def _median_row(
    values: Sequence[float], row_id: str, metric: str, floor: float, goal: float, unit: str, note: str
) -> Row:
    value, low, high = bootstrap_interval(values, [1.0])
    return Row(
        id=row_id,
        metric=metric,
        peer="",
        floor=floor,
        goal=goal,
        value=value,
        low=low,
        high=high,
        unit=unit,
        better="lower",
        note=note,
    )


def server_rows(turns: Sequence[Turn], ready: Sequence[float], one: dict[str, int], four: dict[str, int]) -> list[Row]:
    """S3 to S6: liveness, start, memory and whether every reply was right."""
    live = [1000 * float(np.percentile(t.live, 99)) for t in turns]
    grown = [100 * (t.rss[1] / t.rss[0] - 1) for t in turns]
    checked = [t.checked for t in turns]
    replies = sum(sum(c.statuses.values()) for c in checked)
    wrong = sum(c.lost + c.swapped for c in checked)
    deviation = max(c.deviation for c in checked)
    probes = sum(len(t.live) for t in turns)
    return [
        _median_row(live, "S3", "p99 of /health/live under that load", 50, 10, "ms", f"{probes} probes, 50 a second"),
        _median_row(ready, "S4", "start to ready, MiniLM exported", 3, 1.5, "s", f"{len(ready)} starts"),
        Row(
            id="S5",
            metric=f"replies lost or swapped of {replies:,}, 64 clients",
            peer="the vector that `encode` gives for the text",
            floor=0,
            goal=0,
            value=wrong,
            unit="",
            better="lower",
            note=f"no number of a reply is more than {deviation:.1e} from that of `encode`",
        ),
        _median_row(grown, "S5b", "memory (RSS) after that load, against before", 5, 0, "%", ""),
        Row(
            id="S6",
            metric="memory (RSS) of four heads on one encoder",
            peer="the same server with one head",
            floor=1.3,
            goal=1.1,
            value=four["rss"] / one["rss"],
            unit="x",
            better="lower",
            note=f"{one['rss'] / 1e6:.0f} MB with one head, {four['rss'] / 1e6:.0f} MB with four",
        ),
    ]


def main() -> None:
    """Measure and write results/serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the exported models; finished ones stay")
    parser.add_argument("--export", nargs="*", default=[], help="further options of terrazzo export")
    parser.add_argument("--only-export", action="store_true", help="make what is missing in --work, measure nothing")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=3000, help="requests of a turn")
    parser.add_argument("--peer-count", type=int, default=300, help="requests of a turn of slow servers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    root = data_root(options.data_root)
    texts = texts_of(root, options.texts)
    folder = exported(minilm(), options.work / "minilm", *options.export)
    int8 = exported(minilm(), options.work / "minilm-int8", *calibration(root, options.work))
    heads = exported_heads(options.work, *options.export)
    if options.only_export:
        return
    ready = starts(folder)
    one, four = memory(heads[:1]), memory(heads)
    sides = measure(folder, int8, texts, options.rounds, options.count, options.peer_count)
    rows = [*speed_rows(sides, texts), *server_rows(sides["server"], ready, one, four)]
    details = {
        "texts": len(texts),
        "clients": CLIENTS,
        "turns": {name: [_plain(one) for one in side] for name, side in sides.items()},
        "ready_seconds": ready,
        "memory": {"one head": one, "four heads": four},
    }
    write("serving", rows, details, options.out)


def _plain(one: Any) -> Any:
    if not isinstance(one, Turn):
        return one
    live: dict[str, float] = {"probes": len(one.live)}
    if one.live:  # a blocked event loop answers none
        live |= dict(zip(("p50", "p95", "p99"), np.percentile(one.live, [50, 95, 99]).tolist(), strict=True))
    return dataclasses.asdict(one) | {"live": live}


if __name__ == "__main__":
    main()
