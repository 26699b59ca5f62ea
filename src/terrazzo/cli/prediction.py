"""Predictions from the command line."""

from __future__ import annotations

import json
import sys

from terrazzo.cli.app import app
from terrazzo.cli.options import BatchTokens, Device, Fields, Model, Threads, fields_of, predictor_of


@app.command()
def predict(
    model: Model,
    fields: Fields = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Answer JSON lines on standard input with JSON lines on standard output; a bad row is answered with its error."""
    from terrazzo.tasks.predict import result_dict
    from terrazzo.tasks.rows import read_lines

    predictor = predictor_of(model, device, threads)
    rows = read_lines(sys.stdin.buffer, predictor.task.kind, fields_of(fields))
    count, bad = 0, []
    for result in predictor.stream(rows, batch_tokens):
        count += 1
        bad += [result.error] if result.error is not None else []
        print(json.dumps(result_dict(result), ensure_ascii=False))
    sys.stdout.flush()  # while a full disk can still be told
    if bad:
        print(f"{len(bad):,} of {count:,} rows could not be answered; the first: {bad[0]}", file=sys.stderr)
