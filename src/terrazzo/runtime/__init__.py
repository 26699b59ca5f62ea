"""What executes an encoder: PyTorch as it is, or its graph in OpenVINO or ONNX Runtime, at some precision."""

from terrazzo.runtime.contract import Precision, Runtime, TorchRuntime

__all__ = ["Precision", "Runtime", "TorchRuntime"]
