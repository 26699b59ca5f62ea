import pytest

from terrazzo.data import filters_german as german
from terrazzo.data import filters_tweets as tweets
from terrazzo.data.cleaning import PRESETS, clean, preset
from terrazzo.data.filters import min_letter_share, repair_unicode, tidy_whitespace
from terrazzo.data.language import language_filter
from terrazzo.errors import InputError

PROSE = (
    "Jemand mußte Josef K. verleumdet haben, denn ohne daß er etwas Böses getan hätte, wurde er eines Morgens "
    "verhaftet. Die Köchin der Frau Grubach, die ihm jeden Tag gegen acht Uhr früh das Frühstück brachte, kam nicht."
)


def test_unicode_is_composed_mended_and_freed_of_control_characters_only():
    assert repair_unicode.apply("u\u0308ber\u00ad\x00 \u200bso") == "über so"
    assert repair_unicode.apply("fÃ¼r â€žunsâ€œ") == "für „uns“"
    assert repair_unicode.apply("MÃ¼ller ist müde") == "MÃ¼ller ist müde"
    family = "👩\u200d👧 می\u200cخواهم"
    assert repair_unicode.apply(family) == family


def test_white_space_is_tidied_and_paragraphs_stay():
    assert tidy_whitespace.apply(" a\u00a0 b\t\n\n\n\n c \r\n") == "a b\n\nc"


def test_letter_share_counts_no_white_space_and_every_script():
    share = min_letter_share(0.5)
    assert share.apply("abc   123") == "abc   123"
    assert share.apply("ab   123") is None
    assert share.apply("слово 12345678") == "слово 12345678"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, ""),
        ("Kurz.\n" + PROSE + "\nZu kurz.", ""),
        ("Zu kurz.\nAuch.\n" + "Lang genug, aber ein Zeichen ging verloren: \ufffd.", german.drop_short_lines.reason),
        ("https://example.org/a/very/long/address/that/is/all +49 30 1234567", german.strip_addresses.reason),
        ("Schraube Mutter Bolzen Scheibe Nagel Dübel Haken Öse Kette Seil " * 2, german.enough_stop_words.reason),
        ("und so --- weiter --- und ((so)) !!! weiter ... [und] ??? so", german.little_punctuation.reason),
        ("das ist der Satz " * 20, german.varied_words.reason),
        ("WIR VERKAUFEN ALLES UND DAS IST GUT SO UND ZWAR JETZT", german.little_upper_case.reason),
        ("Art. 7-8, DE/AT/CH: siehe TYP XL, XXL und ROT; nie BLAU", german.little_upper_case_and_punctuation.reason),
    ],
)
def test_each_german_filter_drops_what_it_is_for_and_prose_passes(text, reason):
    result, why = clean(text, PRESETS["german"].filters)
    assert why == reason
    assert result == ("" if reason else PROSE)


def test_addresses_are_taken_out_and_years_stay():
    text = (
        "Ruf (030) 123456-78 oder 0171/2345678 an, schreib a.b@c.de ab 1914-1918 für 12.000.000 Mark 😀 bei www.x.de/y."
    )
    assert " ".join(german.strip_addresses.apply(text).split()) == (
        "Ruf oder an, schreib ab 1914-1918 für 12.000.000 Mark bei"
    )


def test_tweets_get_tags_for_users_and_addresses():
    steps = PRESETS["tweets"].filters
    assert clean("@ana_1 mira &amp; ríe:   https://t.co/x1 ya, a@b @@pepe", steps) == (
        "<usr> mira & ríe: <url> ya, a@b <usr>",
        "",
    )
    assert clean("_usr y _url, x_usr", steps) == ("<usr> y <url>, x_usr", "")
    assert clean("RT @ana: https://t.co/x", steps)[1] == ""
    assert clean("@ana @eva https://t.co/x", steps) == ("", tweets.more_than_tags.reason)


def test_presets_by_name_and_what_raw_does():
    assert clean(" Any \ufffd thing 1 ", preset("raw").filters) == (" Any \ufffd thing 1 ", "")
    assert clean("\n \t", preset("raw").filters) == ("", "blank")
    with pytest.raises(InputError, match="--preset germn: did you mean 'german'"):
        preset("germn")


def test_language_filter_keeps_one_language(monkeypatch):
    pytest.importorskip("py3langid")
    steps = (language_filter("de"),)
    assert clean(PROSE, steps) == (PROSE, "")
    assert clean("It was the best of times, it was the worst of times.", steps) == ("", "language is not de")
    with pytest.raises(InputError, match="--language 'german': no such language code"):
        language_filter("german")
    monkeypatch.setitem(__import__("sys").modules, "py3langid", None)
    with pytest.raises(InputError, match=r"--language fr: .*pip install 'terrazzo\[data\]'"):
        language_filter("fr")
