"""From raw text to packed batches."""

from terrazzo.data.corpus import Corpus, SpecialTokens, Split
from terrazzo.data.loader import Loader, StepBatches, evaluation_batches, num_predictions
from terrazzo.data.options import PrepareConfig
from terrazzo.data.prepare import prepare
from terrazzo.data.stream import StepPlan, StepSource, Stream, pieces_for_tokens, shuffled
from terrazzo.data.tokenizer import encodable, word_start_table

__all__ = [
    "Corpus",
    "Loader",
    "PrepareConfig",
    "SpecialTokens",
    "Split",
    "StepBatches",
    "StepPlan",
    "StepSource",
    "Stream",
    "encodable",
    "evaluation_batches",
    "num_predictions",
    "pieces_for_tokens",
    "prepare",
    "shuffled",
    "word_start_table",
]
