import numpy as np
import pytest

from terrazzo.data.chunks import Chunk, Tally
from terrazzo.data.dedup import DIGEST, digest
from terrazzo.data.encode import document_keys, heldout_count, heldout_limit, train_texts
from terrazzo.data.statistics import length_summary
from terrazzo.provenance import write_json_atomic


def write_chunk(folder, index, texts):
    chunk = Chunk(folder, index)
    chunk.text_file.write_text("".join(f'"{text}"\n' for text in texts))
    chunk.save_array("digests", np.array([digest(text) for text in texts], dtype=DIGEST))
    tally = Tally(kept=len(texts), bytes=sum(map(len, texts)))
    write_json_atomic(chunk.marker_file, {"source": 0, "skip": 0, "done": True, "tally": tally.__dict__})
    return chunk


def heldout_texts(chunks, limit):
    pairs = ((text, key) for chunk in chunks for text, key in zip(chunk.texts(), document_keys(chunk), strict=True))
    return {text for text, key in pairs if key <= limit}


@pytest.mark.parametrize(
    ("documents", "share", "expected"),
    [(20, None, 2), (1000, None, 100), (10_000, None, 200), (100_000, None, 500), (10**7, None, 2000), (50, 0.3, 15)],
)
def test_how_many_documents_are_held_out(documents, share, expected):
    assert heldout_count(documents, share) == expected


def test_what_is_held_out_depends_on_the_documents_and_not_on_their_order_or_files(tmp_path):
    texts = [f"document {i}" for i in range(300)]
    (tmp_path / "other").mkdir()
    chunks = [write_chunk(tmp_path, 0, texts[:100]), write_chunk(tmp_path, 1, texts[100:])]
    shuffled = [write_chunk(tmp_path / "other", 0, [text.upper() for text in reversed(texts)])]
    limit = heldout_limit(chunks, None)
    held = heldout_texts(chunks, limit)
    assert len(held) == 30
    assert {text.lower() for text in heldout_texts(shuffled, heldout_limit(shuffled, None))} == held
    assert set(train_texts(chunks, limit, 10**6)) == set(texts) - held
    fewer = write_chunk(tmp_path / "other", 1, sorted(held)[:10] + texts[250:])
    assert heldout_texts([fewer], heldout_limit([fewer], 0.1)) <= held


def test_a_sample_for_the_tokenizer_is_bounded_and_spread_over_the_corpus(tmp_path):
    texts = [f"document {i:03d}" for i in range(300)]
    chunks = [write_chunk(tmp_path, 0, texts)]
    sample = list(train_texts(chunks, -1, 12 * 30))
    assert len(sample) == 30
    assert np.diff([texts.index(text) for text in sample]).tolist() == [10] * 29


def test_length_summary_counts_every_document_once():
    lengths = np.array([1, 2, 3, 4, 7, 8, 300], dtype=np.int32)
    summary = length_summary(lengths)
    assert summary["histogram"]["edges"][:5] == [1, 2, 4, 8, 16]
    assert summary["histogram"]["documents"] == [1, 2, 2, 1, 0, 0, 0, 0, 1]
    assert (summary["min"], summary["max"], summary["quantiles"]["0.5"]) == (1, 300, 4.0)
