"""A signal is still handled after graphs were compiled and freed, which OpenVINO alone would end with a crash."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import faulthandler, gc, os, signal
from terrazzo.nn import Encoder
from terrazzo.runtime.openvino import OpenVinoRuntime, to_openvino
from terrazzo.testing import TINY_MODEL
from terrazzo.train import Init

encoder = Encoder(Init(fields=TINY_MODEL).encoder_config(64)).eval()
model = to_openvino(encoder)
first, second = (OpenVinoRuntime(model, encoder.config) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_handled_after_graphs_are_freed() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "handled\n"), ran.stderr
