"""Fine-tuning from the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from terrazzo.cli.app import app
from terrazzo.cli.options import Fields, Threads, fields_of
from terrazzo.errors import InputError

if TYPE_CHECKING:
    from terrazzo.tasks.finetune import FinetuneConfig
    from terrazzo.train import RunConfig
    from terrazzo.train.hooks import Hook


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="The folder to make; the same command goes on where it stopped.")],
    model: Annotated[str | None, typer.Option(help="A model folder, ours or a published one.")] = None,
    task: Annotated[str | None, typer.Option(help="label, pair, regression, tag, span or multi.")] = None,
    train: Annotated[str | None, typer.Option(help="Labelled rows: .jsonl, .csv, .json, .conll or a data set.")] = None,
    eval: Annotated[str | None, typer.Option(help="Rows that score the models; a tenth of train if left out.")] = None,
    fields: Fields = None,
    seeds: Annotated[int | None, typer.Option(help="Runs for each learning rate, 3 if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="The first of them.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate, or several to choose from: 2e-5,5e-5.")] = None,
    budget: Annotated[str | None, typer.Option(help="5m for all runs together, or 300steps for each.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows, 3 if left out.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Tokens after which a text is cut, or read in windows.")] = None,
    metric: Annotated[str | None, typer.Option(help="What models are compared by; the task's own if left out.")] = None,
    patience: Annotated[int | None, typer.Option(help="Evaluations without gain that end a run.")] = None,
    class_weights: Annotated[str | None, typer.Option(help="balanced: rare classes count as much.")] = None,
    focal_gamma: Annotated[float | None, typer.Option(help="Focal loss: easy rows count less.")] = None,
    lora: Annotated[int | None, typer.Option(help="Train adapters of this rank instead of the encoder.")] = None,
    adapter: Annotated[str | None, typer.Option(help="pst or dsee: train adapters that prune the encoder.")] = None,
    freeze: Annotated[str | None, typer.Option(help="embeddings or encoder: parts that are not trained.")] = None,
    layer_decay: Annotated[float | None, typer.Option(help="Rate of a layer as a share of that above.")] = None,
    config: Annotated[Path | None, typer.Option(help="A fine-tuning config in TOML or JSON.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. warmup=0.06; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")] = None,
    threads: Threads = None,
) -> None:
    """Adapt a model to labelled rows: every learning rate with every seed, the best kept."""
    from terrazzo.config import read_file

    given = {
        "model": model,
        "task": task,
        "train": train,
        "eval": eval,
        "fields": fields_of(fields) or None,
        "seeds": seeds,
        "seed": seed,
        "lr": None if lr is None else rates_of(lr),
        "budget": None if budget is None else budget_of(budget),
        "epochs": epochs,
        "batch_size": batch_size,
        "max_len": max_len,
        "options": {"metric": metric},
        "patience": patience,
        "loss": {"class_weights": class_weights, "focal_gamma": focal_gamma},
        "lora": {"rank": lora},
        "adapter": {"kind": adapter},
        "freeze": freeze,
        "layer_decay": layer_decay,
        "device": device,
        "threads": threads,
    }
    values = merged(read_file(config) if config else {}, given)
    _run(config_of({**values, "out": str(out)}, assignments or [], str(config or "command line")))


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what was given instead; None was not, and parts of a field change those parts alone."""
    result = dict(values)
    for name, value in given.items():
        if name in ("options", "loss", "lora", "adapter"):
            parts = {key: part for key, part in value.items() if part is not None}
            if parts:
                result[name] = {**(result.get(name) or {}), **parts}
        elif value is not None:
            result[name] = value
    return result


def config_of(values: dict[str, Any], assignments: list[str], source: str) -> FinetuneConfig:
    """The fine-tuning that options describe.

    Raises:
        InputError: an option that is missing, unknown or refused.
    """
    from terrazzo.config import from_dict, override
    from terrazzo.tasks.finetune import FinetuneConfig

    for name, mend in (("model", "the folder to begin from"), ("train", "the labelled rows to learn from")):
        if not values.get(name):
            raise InputError(f"--{name}: name {mend}")
    return from_dict(FinetuneConfig, override(values, assignments), source)


def rates_of(text: str) -> list[float]:
    """`2e-5,5e-5` as numbers.

    Raises:
        InputError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--lr {text}: write one rate, or several with commas: 2e-5,5e-5") from None


def budget_of(text: str) -> dict[str, Any]:
    """`5m` as the fields of a budget."""
    from terrazzo.config import to_dict
    from terrazzo.train import Budget

    return {name: value for name, value in to_dict(Budget.parse(text)).items() if value is not None}


def _run(config: FinetuneConfig) -> None:
    from rich.console import Console

    from terrazzo.cli.tables import run_line, show_finetune
    from terrazzo.show import show_understanding
    from terrazzo.tasks.finetune import finetune
    from terrazzo.tasks.report import write_finetune_report
    from terrazzo.train import default_hooks

    console = Console()

    def announced(run: RunConfig) -> Callable[[Path], Sequence[Hook]]:
        console.print(f"\n[bold]{Path(run.out).name}[/]", highlight=False)
        return default_hooks(run, peak=False)

    result = finetune(
        config,
        hooks=announced,
        on_understood=show_understanding,
        on_run=lambda run: console.print(run_line(run), highlight=False),
    )
    if int(os.environ.get("RANK", 0)):
        return
    if result is None:
        print(f"stopped; the same command goes on with {config.out}")
        raise SystemExit(130)
    console.print()
    show_finetune(result, console)
    _evaluate(config)
    page = write_finetune_report(config.out)
    print(f"model   {Path(config.out) / 'model'}\nreport  {page}")


def _evaluate(config: FinetuneConfig) -> None:
    """Write OUT/evaluation.json: the model on the rows that scored it."""
    from terrazzo.cli.options import predictor_of
    from terrazzo.tasks.evaluate import evaluate_model, write_evaluation
    from terrazzo.tasks.preparation import prepare
    from terrazzo.tasks.report.record import EVALUATION
    from terrazzo.tasks.rows import read_examples

    rows = (
        read_examples(config.eval, config.task, config.fields) if config.eval else prepare(config).workload.dev.examples
    )
    predictor = predictor_of(Path(config.out), None if config.device == "auto" else config.device, config.threads)
    write_evaluation(Path(config.out) / EVALUATION, evaluate_model(predictor, rows), data=config.eval or "held out")
