"""Make `.venv` hold what this checkout needs; return at once where it already does.

Runs on the system's Python and its standard library alone, also on one too old for terrazzo, to say so.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "terrazzo-setup"
LOG = VENV / "setup.log"
TORCH = "torch==2.13.0"
OLDEST = (3, 11)


def main(torch_requirement: str) -> None:
    if not torch_requirement and STAMP.is_file() and STAMP.read_text() == fingerprint():
        return
    started = time.monotonic()
    python = suitable_python()
    if works("-m", "pip", "--version"):
        step(1, "keeping .venv")
    else:
        step(1, f"making .venv with {python}")
        make_venv(python)
    STAMP.unlink(missing_ok=True)
    if torch_requirement or not works("-c", "import torch"):
        wanted = torch_requirement or TORCH
        step(2, f"installing {wanted} (some hundred megabytes)")
        pip(*wanted.split())
    else:
        step(2, "keeping the torch that is there")
    step(3, "installing terrazzo and what its tests, checks and demo need")
    pip("--editable", f"{ROOT}[dev]")
    STAMP.write_text(fingerprint())
    step(4, f"ready in {time.monotonic() - started:.0f} s")


def fingerprint() -> str:
    """Changes when the requirements, this script or the checkout's place change."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def suitable_python() -> str:
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    stop(
        f"{sys.executable} is Python {platform.python_version()}; terrazzo needs 3.11 or newer.\n"
        "Install one (for example `apt-get install python3.11 python3.11-venv`) and run `make PYTHON=python3.11 ...`."
    )


def make_venv(python: str) -> None:
    if subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode:
        stop(f"{python} has no venv module. On Debian or Ubuntu: `apt-get install python3-venv`; then run make again.")
    done = subprocess.run([python, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        stop(f"`{python} -m venv {VENV}` failed:\n{done.stdout}{done.stderr}")


def works(*arguments: str) -> bool:
    """Whether .venv's Python exists and runs this."""
    return PYTHON.exists() and subprocess.run([str(PYTHON), *arguments], capture_output=True).returncode == 0


def pip(*arguments: str) -> None:
    """Install, showing one line for each download instead of pip's whole output."""
    command = [str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment
    )
    assert process.stdout is not None
    with open(LOG, "w") as log:
        for line in process.stdout:
            log.write(line)
            if line.lstrip().startswith("Downloading "):
                print("      " + re.sub(r"-[^ ]*\.(whl|tar\.gz)", "", line.strip()), flush=True)
            elif line.startswith("Installing collected"):
                print("      Installing", flush=True)
    if process.wait():
        stop(f"`{' '.join(command)}` failed; the end of {LOG}:\n{''.join(LOG.read_text().splitlines(True)[-15:])}")


def step(number: int, message: str) -> None:
    print(f"[{number}/4] {message}", flush=True)


def stop(message: str) -> NoReturn:
    print(f"make setup: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
