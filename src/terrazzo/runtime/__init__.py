"""What executes an encoder: PyTorch as it is, or its graph in OpenVINO or ONNX Runtime, at some precision."""

from terrazzo.runtime.contract import Precision, Runtime, TorchRuntime, share_threads
from terrazzo.runtime.graph import GraphEncoder
from terrazzo.runtime.onnx import OnnxRuntime, quantise_onnx, to_onnx
from terrazzo.runtime.openvino import OpenVinoRuntime, save_openvino, to_openvino
from terrazzo.runtime.padded import PaddedEncoder

__all__ = [
    "GraphEncoder",
    "OnnxRuntime",
    "OpenVinoRuntime",
    "PaddedEncoder",
    "Precision",
    "Runtime",
    "TorchRuntime",
    "quantise_onnx",
    "save_openvino",
    "share_threads",
    "to_onnx",
    "to_openvino",
]
