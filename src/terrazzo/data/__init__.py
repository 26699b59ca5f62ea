"""From raw text to packed batches."""

from terrazzo.data.corpus import Corpus, SpecialTokens, Split

__all__ = ["Corpus", "SpecialTokens", "Split"]
