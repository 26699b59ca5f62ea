"""`python -m benchmarks [--gpu] [NAME ...]` runs benchmarks, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys

from terrazzo.config import nearest

CPU: tuple[str, ...] = (
    "attention",
    "data",
    "training",
    "optimizers",
    "finetuning",
    "minilm",
    "suites",
    "inference",
    "compression",
    "serving",
    "serving_hostile",
)
GPU: tuple[str, ...] = ("gpu",)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if all ran, 1 if one failed (the others still run), 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure terrazzo beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(CPU)})")
    parser.add_argument("--gpu", action="store_true", help=f"the GPU benchmarks: {', '.join(GPU)}")
    options = parser.parse_args(arguments)
    names = options.names or (GPU if options.gpu else CPU)
    for name in names:
        if name not in CPU + GPU:
            print(f"benchmark {name!r}: {nearest(name, CPU + GPU)}", file=sys.stderr)
            return 2
    failed = [name for name in names if not ran(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def ran(name: str) -> bool:
    """Run one benchmark; a fresh process, so that peak memory and compiled code are its own."""
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
