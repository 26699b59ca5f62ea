"""The encoder and everything it is made of."""

from terrazzo.nn.config import FAMILIES, SIZES, EncoderConfig, bert, modernbert, mosaicbert
from terrazzo.nn.encoder import Encoder
from terrazzo.nn.flops import forward_flops, parameter_count, training_flops
from terrazzo.nn.heads import MaskedLM, MaskedLMHead
from terrazzo.nn.linear import StackedLinear

__all__ = [
    "FAMILIES",
    "SIZES",
    "Encoder",
    "EncoderConfig",
    "MaskedLM",
    "MaskedLMHead",
    "StackedLinear",
    "bert",
    "forward_flops",
    "modernbert",
    "mosaicbert",
    "parameter_count",
    "training_flops",
]
