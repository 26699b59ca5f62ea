"""The server under hostile clients and hostile moments; every check counts what should not have happened.

python -m benchmarks.serving_hostile --data-root DATASETS --work WORK
python -m benchmarks.serving_hostile --data-root DATASETS --work WORK --checks malformed reload
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch

import terrazzo
from benchmarks.result import RESULTS, Row, write
from benchmarks.serving_attacks import (
    SHOWN,
    Finding,
    broken,
    flood,
    full_queue,
    killed_clients,
    large,
    malformed,
    replaced_under_load,
    slow_clients,
    stopped_under_load,
)
from benchmarks.serving_client import HOST, check, load, post, run
from benchmarks.serving_models import exported, exported_heads, texts_of
from benchmarks.serving_process import ours
from recipes.runner import data_root
from recipes.tuning import minilm
from terrazzo.checkpoint import load_model, save_model
from terrazzo.checkpoint.atomic import atomic_folder


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the checks work with.

    Args:
        folder: exported MiniLM; other: the same shape with other weights; heads: task folders.
        count: malformed bodies; examples: of schemathesis for each endpoint.
    """

    folder: Path
    other: Path
    heads: Sequence[Path]
    texts: Sequence[str]
    count: int
    examples: int
    slow_seconds: float

    @property
    def singles(self) -> list[bytes]:
        """A request a text."""
        return [embeddings(self.folder.name, text) for text in self.texts]

    def vectors(self, folder: Path, texts: Sequence[str]) -> np.ndarray:
        """What `encode` gives, `(N, D)`."""
        return terrazzo.load(folder).encode(texts, normalize=True)

    @property
    def models(self) -> dict[str, str | None]:
        """Which model each endpoint is asked with."""
        by_path = {"/v1/classify": "topic", "/v1/tag": "names", "/v1/rerank": "relevance"}
        paths = ("/v1/embeddings", "/v1/tokenize", "/v1/qa", "/v1/fill_mask")
        return {**dict.fromkeys(paths, self.folder.name), **by_path}


def embeddings(model: str, texts: str | Sequence[str]) -> bytes:
    """A request for vectors."""
    return post("/v1/embeddings", {"model": model, "input": texts, "encoding_format": "base64"})


def waiting(metrics: str) -> float:
    """Texts that wait, from /metrics."""
    return sum(float(value) for value in re.findall(r"^terrazzo_queue_documents\S* (\S+)$", metrics, re.M))


async def good_load(port: int, setup: Setup, count: int, expected_ND: np.ndarray) -> list[str]:
    """64 ordinary clients; what is wrong with their replies."""
    done = await load(port, setup.singles, 64, count)
    checked = check(done, expected_ND)
    return [] if not checked.lost + checked.swapped else [f"of ordinary clients: {checked}"]


def check_malformed(setup: Setup) -> list[Finding]:
    """Malformed bodies, large ones, no HTTP, and schemathesis, one after another on one server with five models."""
    with ours([setup.folder, *setup.heads]) as server:
        run(load(server.port, setup.singles, 64, 300))
        before = server.rss_bytes
        findings = [
            run(malformed(server.port, setup.count, setup.models)),
            run(large(server.port, setup.models)),
            run(broken(server.port)),
            schemathesis(server.port, setup.examples),
        ]
        after = Finding(
            name="afterwards", what="kinds of malformed requests, by what they left behind", tried=len(findings)
        )
        expected_ND = setup.vectors(setup.folder, setup.texts)
        after.problems += run(good_load(server.port, setup, 300, expected_ND))
        after.details = {"rss before": before, "rss after": server.rss_bytes}
        after.expect(server.rss_bytes < 1.5 * before, f"RSS went from {before:,} to {server.rss_bytes:,} bytes")
        after.expect("Traceback" not in server.output(), f"the log: {server.output()[-2000:]}")
        return [*findings, after]


def schemathesis(port: int, examples: int) -> Finding:
    """What schemathesis makes of /openapi.json: no status of 500 or more, within its time."""
    finding = Finding(name="schemathesis", what="requests of schemathesis from /openapi.json")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"http://{HOST}:{port}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--seed", "0", "--no-shrink", "--continue-on-failure"]
    command += ["--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--request-timeout", "30"]
    command += ["--suppress-health-check", "all", "--warnings", "off"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400)
    said = done.stdout[-3000:]
    numbers = re.findall(r"(\d[\d,]*) (?:test cases )?generated", said)
    finding.tried = int(numbers[-1].replace(",", "")) if numbers else 0
    finding.expect(done.returncode == 0, f"exit status {done.returncode}: {said} {done.stderr[-500:]}")
    return finding


def check_clients(setup: Setup) -> list[Finding]:
    """Killed clients, slow clients, idle connections."""
    expected_ND = setup.vectors(setup.folder, setup.texts)
    many = {"model": setup.folder.name, "input": list(setup.texts)}
    with ours([setup.folder]) as server:
        run(load(server.port, setup.singles, 64, 300))
        good = setup.singles[0]

        def others() -> Any:
            return good_load(server.port, setup, 600, expected_ND)

        return [
            run(killed_clients(server.port, many, waiting)),
            run(slow_clients(server.port, good, others, setup.slow_seconds)),
            run(flood(server.port, 2000, good)),
        ]


def check_queue(setup: Setup) -> list[Finding]:
    """A queue that is too short for 64 clients."""
    with ours([setup.folder], "--max-queue", "2000") as server:
        return [run(full_queue(server.port, setup.singles, 3000))]


def check_reload(setup: Setup) -> list[Finding]:
    """The folder is replaced by a model with other weights, and back."""
    groups = [setup.texts[first : first + 4] for first in range(0, len(setup.texts) - 3, 4)]
    versions = [setup.vectors(folder, setup.texts) for folder in (setup.folder, setup.other)]
    shaped = [all_ND[: 4 * len(groups)].reshape(len(groups), 4, -1) for all_ND in versions]
    with tempfile.TemporaryDirectory(dir=setup.folder.parent) as place:
        live = Path(place) / "live"
        shutil.copytree(setup.folder, live)
        coming = [setup.other, setup.folder] * 4

        def swap() -> None:
            with atomic_folder(live) as folder:
                shutil.copytree(coming.pop(0), folder, dirs_exist_ok=True)

        with ours([live]) as server:
            bodies = [embeddings("live", list(group)) for group in groups]
            finding = run(replaced_under_load(server.port, bodies, swap, shaped))
            finding.expect("Traceback" not in server.output(), f"the log: {server.output()[-2000:]}")
    return [finding]


def check_stop(setup: Setup) -> list[Finding]:
    """SIGTERM under load."""
    with ours([setup.folder]) as server:
        run(load(server.port, setup.singles, 64, 300))
        finding = run(stopped_under_load(server, setup.singles))
        finding.expect("Traceback" not in server.output(), f"the log: {server.output()[-2000:]}")
        return [finding]


def check_openai(setup: Setup) -> list[Finding]:
    """The client library of OpenAI, as it is installed."""
    finding = Finding(name="openai", what=f"calls of the openai client {openai.__version__}")
    texts = list(setup.texts[:40])
    expected_ND = setup.vectors(setup.folder, texts)
    with ours([setup.folder]) as server:
        client = openai.OpenAI(base_url=f"http://{HOST}:{server.port}/v1", api_key="none", max_retries=0)
        model = setup.folder.name
        create = partial(client.embeddings.create, model=model, input=texts)
        as_default, as_float, as_base64 = create(), create(encoding_format="float"), create(encoding_format="base64")
        plain_ND, float_ND = (np.asarray([d.embedding for d in r.data], np.float32) for r in (as_default, as_float))
        raw_ND = np.stack([np.frombuffer(base64.b64decode(str(d.embedding)), "<f4") for d in as_base64.data])
        finding.expect(bool((raw_ND == float_ND).all()), "float and base64 differ")
        finding.expect(bool((plain_ND == float_ND).all()), "the client's default and float differ")
        finding.expect(bool(np.abs(plain_ND - expected_ND).max() < 1e-3), "the vectors are not those of encode")
        short = client.embeddings.create(model=model, input="a text", dimensions=32).data[0].embedding
        finding.expect(len(short) == 32, f"dimensions=32 gives {len(short)}")
        finding.expect([m.id for m in client.models.list()] == [model], "models.list() gives other models")
        finding.expect(as_default.usage.prompt_tokens > 0, "no usage")
        finding.problems += _openai_errors(client, model)
        finding.tried = 8
    return [finding]


def _openai_errors(client: openai.OpenAI, model: str) -> list[str]:
    problems = []
    for kind, arguments in (
        (openai.NotFoundError, {"model": "nobody", "input": "x"}),
        (openai.UnprocessableEntityError, {"model": model, "input": "x", "dimensions": 10**6}),
    ):
        try:
            client.embeddings.create(**arguments)
            problems.append(f"{arguments}: no error")
        except kind as error:
            if not error.message or error.param is None:
                problems.append(f"{arguments}: the error says nothing: {error!r}")
    return problems


CHECKS: dict[str, Callable[[Setup], list[Finding]]] = {
    "malformed": check_malformed,
    "clients": check_clients,
    "queue": check_queue,
    "reload": check_reload,
    "stop": check_stop,
    "openai": check_openai,
}


def other_weights(work: Path) -> Path:
    """MiniLM with noise on its weights."""
    folder = work / "sources" / "other"
    if not folder.is_dir():
        encoder = load_model(minilm())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(folder, encoder, minilm() / "tokenizer.json")
    return folder


def rows_of(findings: Sequence[Finding]) -> list[Row]:
    """How often something happened that should not: in all, and of each check."""

    def row(row_id: str, tried: int, what: str, wrong: int, note: str) -> Row:
        metric = f"failures in {tried:,} {what}"
        return Row(id=row_id, metric=metric, peer="", floor=0, goal=0, value=wrong, unit="", better="lower", note=note)

    kinds = ", ".join(finding.name for finding in findings)
    wrong = sum(len(finding.problems) for finding in findings)
    total = row("H1", sum(f.tried for f in findings), "hostile requests and connections", wrong, kinds)
    parts = []
    for letter, finding in zip(string.ascii_lowercase, findings, strict=False):
        note = ", ".join(f"{name}: {value}" for name, value in finding.details.items())
        parts.append(row(f"H1{letter}", finding.tried, finding.what, len(finding.problems), note))
    return [total, *parts]


def main() -> None:
    """Run the checks and write results/serving_hostile.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the exported models; finished ones stay")
    parser.add_argument("--export", nargs="*", default=[], help="further options of terrazzo export")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--count", type=int, default=10_000, help="malformed bodies")
    parser.add_argument("--examples", type=int, default=50, help="of schemathesis, for each endpoint")
    parser.add_argument("--slow-seconds", type=float, default=45.0, help="how long slow clients go on")
    parser.add_argument("--only-print", action="store_true", help="write no results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    setup = Setup(
        folder=exported(minilm(), options.work / "minilm", *options.export),
        other=exported(other_weights(options.work), options.work / "other", *options.export),
        heads=exported_heads(options.work, *options.export),
        texts=texts_of(data_root(options.data_root), 300),
        count=options.count,
        examples=options.examples,
        slow_seconds=options.slow_seconds,
    )
    findings = []
    for name in options.checks:
        for finding in CHECKS[name](setup):
            findings.append(finding)
            shown = "\n    ".join(finding.problems[:SHOWN])
            counts = f"{finding.tried} tried, {len(finding.problems)} problems"
            print(f"{finding.name}: {counts} {finding.details}\n    {shown}", flush=True)
    if not options.only_print:
        kept = [dataclasses.asdict(f) | {"problems": f.problems[:SHOWN]} for f in findings]
        write("serving_hostile", rows_of(findings), {"findings": kept}, options.out)


if __name__ == "__main__":
    main()
