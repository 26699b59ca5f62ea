"""Model folders: written whole or not at all, published ones read by renaming their tensors."""

from terrazzo.checkpoint.atomic import atomic_folder
from terrazzo.checkpoint.empty import empty_model, without_values
from terrazzo.checkpoint.folder import has_masked_lm_head, load_config, load_model, save_model, write_model
from terrazzo.checkpoint.tokenizer import load_tokenizer

__all__ = [
    "atomic_folder",
    "empty_model",
    "has_masked_lm_head",
    "load_config",
    "load_model",
    "load_tokenizer",
    "save_model",
    "without_values",
    "write_model",
]
