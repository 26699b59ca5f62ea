"""The command line: prepare, plan, pretrain, encode; finetune, predict, evaluate; export, compress, bench, serve."""

from terrazzo.cli import pretraining as pretraining  # isort: skip
from terrazzo.cli import finetuning as finetuning  # isort: skip
from terrazzo.cli import prediction as prediction  # isort: skip
from terrazzo.cli import evaluation as evaluation  # isort: skip
from terrazzo.cli import exporting as exporting  # isort: skip
from terrazzo.cli import compressing as compressing  # isort: skip
from terrazzo.cli import benching as benching  # isort: skip
from terrazzo.cli import serving as serving  # isort: skip
from terrazzo.cli.app import app, main

__all__ = ["app", "main"]
