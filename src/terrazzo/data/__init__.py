"""From raw text to packed batches."""

from terrazzo.data.corpus import Corpus, SpecialTokens, Split
from terrazzo.data.loader import Loader, StepBatches, evaluation_batches
from terrazzo.data.options import PrepareConfig
from terrazzo.data.prepare import prepare
from terrazzo.data.stream import StepPlan, Stream, pieces_for_tokens
from terrazzo.data.tokenizer import encodable, word_start_table

__all__ = [
    "Corpus",
    "Loader",
    "PrepareConfig",
    "SpecialTokens",
    "Split",
    "StepBatches",
    "StepPlan",
    "Stream",
    "encodable",
    "evaluation_batches",
    "pieces_for_tokens",
    "prepare",
    "word_start_table",
]
