"""The command line: prepare, plan, pretrain, report, encode; finetune, predict, evaluate."""

from terrazzo.cli import pretraining as pretraining
from terrazzo.cli import tasks as tasks
from terrazzo.cli.app import app, main

__all__ = ["app", "main"]
