import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from terrazzo.data.corpus import SpecialTokens
from terrazzo.data.tokenizer import encode_batch, load_tokenizer, train_tokenizer, word_start_table
from terrazzo.errors import InputError

TEXTS = ["Der Löwe läuft über die Brücke.", "the señor <usr> runs to <url> again", "über den Fluß, <usr>!"] * 40
TEXTS += ["Nichts als Wellen, Wind und Möwen; sogar der Hafen schläft.", "quick foxes jump, lazy dogs don't"] * 40
TAGS = ("<usr>", "<url>")


@pytest.fixture(scope="module")
def cased():
    return train_tokenizer(lambda: TEXTS, "wordpiece", 192, tags=TAGS, shrink=True)


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(lambda: TEXTS, "bpe", 300, tags=TAGS)


def test_vocabulary_is_a_multiple_of_64_and_begins_with_the_special_tokens(cased, bpe):
    for tokenizer in (cased, bpe):
        assert tokenizer.get_vocab_size() % 64 == 0
        assert SpecialTokens.of(tokenizer) == SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
        assert [tokenizer.token_to_id(tag) for tag in TAGS] == [5, 6]
    assert bpe.get_vocab_size() == 320


def test_a_saved_tokenizer_gives_model_ready_ids_and_pairs_with_types(cased, tmp_path):
    cased.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    one = loaded.encode("über die Brücke")
    assert one.ids[0] == 2 and one.ids[-1] == 3
    assert loaded.decode(one.ids) == "über die Brücke"
    pair = loaded.encode("über", "die Brücke")
    second = pair.ids.index(3) + 1
    assert pair.type_ids == [0] * second + [1] * (len(pair.ids) - second)


def test_accents_and_case_stay_or_go(cased):
    folded = train_tokenizer(lambda: TEXTS, "wordpiece", 192, lowercase=True, strip_accents=True, shrink=True)
    assert cased.decode(cased.encode("Löwe").ids) == "Löwe"
    assert folded.decode(folded.encode("LÖWE").ids) == "lowe"
    lower = train_tokenizer(lambda: TEXTS, "bpe", 320, lowercase=True)
    assert lower.decode(lower.encode("LÖWE").ids) == "löwe"


def test_tags_stay_whole_and_special_tokens_in_a_text_are_ordinary_text(cased, bpe):
    for tokenizer in (cased, bpe):
        (ids,) = encode_batch(tokenizer, ["the <usr> [MASK] runs"])
        assert ids.count(5) == 1
        assert not {0, 2, 3, 4} & set(ids)
        assert tokenizer.encode("[MASK]").ids == [2, 4, 3]
    space_before = bpe.encode("the [MASK] runs").ids
    assert space_before == bpe.encode("the[MASK] runs").ids


def test_training_twice_gives_the_same_tokenizer(cased, bpe):
    # The trainer's hash maps are seeded anew in each run, so the order that they give would differ here.
    again = train_tokenizer(lambda: TEXTS, "wordpiece", 192, tags=TAGS, shrink=True)
    assert again.to_str() == cased.to_str()
    assert train_tokenizer(lambda: TEXTS, "bpe", 300, tags=TAGS).to_str() == bpe.to_str()


def test_a_vocabulary_beyond_the_corpus_names_what_it_supports_and_that_works():
    with pytest.raises(InputError, match=r"--vocab-size 5000: the corpus supports only (\d+) tokens") as caught:
        train_tokenizer(lambda: TEXTS, "wordpiece", 5000)
    advised = int(str(caught.value).split("take --vocab-size ")[1].split()[0])
    assert train_tokenizer(lambda: TEXTS, "wordpiece", advised).get_vocab_size() == advised
    with pytest.raises(InputError, match="supports only [0-9]+ tokens, too few"):
        train_tokenizer(lambda: TEXTS[:3], "wordpiece", 64, shrink=True)
    with pytest.raises(InputError, match="--vocab-size 100: the single characters .* take --vocab-size 576 or more"):
        train_tokenizer(lambda: TEXTS, "bpe", 100)


def test_a_reused_tokenizer_loses_padding_and_gains_start_and_end(tmp_path):
    vocabulary = {name: index for index, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "hi"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("hi hi hi").ids == [0, 5, 5, 5, 2]
    assert SpecialTokens.of(loaded) == SpecialTokens(pad=1, unk=3, cls=0, sep=2, mask=4)


def test_unusable_tokenizers_are_named(tmp_path):
    with pytest.raises(InputError, match="--tokenizer .*: no .*tokenizer.json; give a tokenizer.json"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer.json"):
        load_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]")).save(str(file))
    with pytest.raises(InputError, match=r"tokenizer.json: the tokenizer has no \[CLS\] or <s> token"):
        load_tokenizer(file)


def test_word_starts(cased, bpe):
    table = word_start_table(cased)
    names = [cased.id_to_token(index) for index in range(len(table))]
    assert table.dtype == np.bool_ and table.tolist() == [not name.startswith("##") for name in names]
    table = word_start_table(bpe)
    names = [bpe.id_to_token(index) for index in range(len(table))]
    assert table.tolist() == [name[0] in "ĠĊ" or index < 7 for index, name in enumerate(names)]
    assert 0 < table[7:].sum() < len(table) - 7
