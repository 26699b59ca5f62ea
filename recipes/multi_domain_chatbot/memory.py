"""Bytes on disk and in memory of the models that answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: Loads every folder given, answers a row with each, and prints by how much that made resident memory grow.
_CHILD = """
import gc, os, sys
from pathlib import Path
import torch, terrazzo
from terrazzo.api import Model

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.set_num_threads(1)
torch.randn(64, 64) @ torch.randn(64, 64)
before = resident()
text, pairs = sys.argv[1], [pair.split("=", 1) for pair in sys.argv[2:]]
models = {folder: terrazzo.load(folder) for _, folder in pairs}
for problem, folder in pairs:
    (result,) = models[folder].predict([{"text": text, "problem": problem} if problem else text])
    assert result.error is None, result.error
print(resident() - before)
"""


def disk_bytes(folders: Sequence[Path]) -> int:
    """Bytes of all files of the folders."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def resident_bytes(questions: Sequence[tuple[str, Path]], text: str) -> int:
    """Resident memory that loading and asking adds to a fresh process.

    Args:
        questions: the problem to ask for ("" for a model of one problem), and the model folder to ask.
    """
    arguments = [f"{problem}={folder}" for problem, folder in questions]
    child = subprocess.run([sys.executable, "-c", _CHILD, text, *arguments], check=True, capture_output=True, text=True)
    return int(child.stdout)
