"""Rooms import only from lower layers and from themselves, and importing terrazzo stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = (
    ("errors", "config", "packed", "provenance"),
    ("nn", "data", "optim"),
    ("checkpoint", "objectives"),
    ("train", "growth", "hf", "runtime"),
    ("tasks", "retrieval", "causal", "vision"),
    ("compression",),
    ("api", "testing"),
    ("serve", "show"),
    ("cli",),
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
OUTSIDE = {"recipes", "benchmarks", "tests", "scripts"}
HEAVY = (
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "fastapi",
    "sklearn",
    "matplotlib",
    "datasets",
    "pyarrow",
    "datasketch",
    "tensorboard",
)
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "terrazzo"


def violations(room: str, module: str, source: str) -> list[str]:
    """The imports in `source`, a file of `room` with dotted name `module`, that the layers forbid."""
    found = []
    for line, target in imported(source, module):
        parts = target.split(".")
        if parts[0] in OUTSIDE:
            found.append(f"{module}:{line} imports {target}, which sits outside the package")
        if parts[0] != "terrazzo" or len(parts) < 2 or parts[1] in (room, "__version__"):
            continue
        if parts[1] not in LAYER_OF:
            found.append(f"{module}:{line} imports {target}, which has no layer")
        elif LAYER_OF[parts[1]] >= max(LAYER_OF[room], 1):
            found.append(f"{module}:{line} imports {target}, which is not below {room}")
    return found


def imported(source: str, module: str) -> list[tuple[int, str]]:
    """Line and absolute dotted name of everything imported; `from terrazzo import nn` counts as terrazzo.nn."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            names += [(node.lineno, ".".join([*base, *filter(None, [node.module]), a.name])) for a in node.names]
    return names


def test_rooms_import_only_from_below():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = "cli" if parts == ("__main__",) else parts[0]
        if parts == ("__init__",):
            continue
        assert room in LAYER_OF, f"{path}: room {room!r} has no layer; add it to docs/design.md and to LAYERS"
        found += violations(room, ".".join(["terrazzo", *parts]), path.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import terrazzo.train.loop", "not below nn"),
        ("from terrazzo import optim", "not below nn"),
        ("from ..objectives import mlm", "not below nn"),
        ("def f():\n    from terrazzo.cli import main", "not below nn"),
        ("import recipes.claims", "outside the package"),
        ("import terrazzo.utils", "has no layer"),
    ],
)
def test_a_forbidden_import_is_seen(source, complaint):
    (found,) = violations("nn", "terrazzo.nn.mlp", source)
    assert complaint in found


def test_allowed_imports_pass():
    source = "import torch\nfrom . import norms\nfrom terrazzo.packed import Packed\nfrom terrazzo import config"
    assert violations("nn", "terrazzo.nn.mlp", source) == []


def test_design_page_shows_the_same_layers():
    table = re.search(r"^    0 errors.*?8 cli", (ROOT / "docs" / "design.md").read_text(), re.DOTALL | re.MULTILINE)
    assert table, "docs/design.md lost its layer table"
    rows = re.findall(r"\d ([a-z][a-z ]*)", table.group())
    assert tuple(tuple(row.split()) for row in rows) == LAYERS


@pytest.mark.parametrize("entry", ["import terrazzo", "import terrazzo; terrazzo.load", "import terrazzo.cli"])
def test_importing_terrazzo_loads_no_optional_package(entry):
    code = f"import sys; {entry}; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_bare_import_does_not_pay_for_torch():
    code = "import sys, terrazzo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "False", done.stderr


def test_a_server_does_not_pay_for_training():
    code = "import sys, terrazzo.serve.loaded; print(*({'sympy', 'torch.distributed.tensor'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == [], done.stderr
