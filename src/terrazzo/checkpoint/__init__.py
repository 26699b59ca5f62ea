"""Model folders: written whole or not at all, published ones read by renaming their tensors."""

from terrazzo.checkpoint.folder import atomic_folder, load_config, load_model, save_model, write_model
from terrazzo.checkpoint.tokenizer import load_tokenizer

__all__ = ["atomic_folder", "load_config", "load_model", "load_tokenizer", "save_model", "write_model"]
