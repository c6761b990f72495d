"""Personal data and secrets: every listed shape is found, and none of the look-alikes is.

The values are made up for these tests (or published by their schemes as test numbers); tokens are put together from
pieces so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import random
import string
import time

import pytest

from halo_forge.texts.privacy import DETECTORS, PLACEHOLDER, find_private, hints, redact

_RANDOM = random.Random(7)


def _token(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(_RANDOM.choice(letters) for _ in range(length - 3)) + "a7Q"


KEY_BLOCK = (
    "-----BEGIN " + "RSA PRIVATE KEY-----\n" + _token(64) + "\n" + _token(64) + "\n-----END RSA PRIVATE KEY-----"
)
POSITIVES = [
    ("pii_email", "Write to jane.doe@example.com today.", "jane.doe@example.com"),
    ("pii_email", "<first.last+tag@mail.uni-bonn.de>", "first.last+tag@mail.uni-bonn.de"),
    ("pii_email", "Mail: o'brien@firm.co.uk.", "o'brien@firm.co.uk"),
    ("pii_email", "联系 wang_li@公司.cn 谢谢", "wang_li@公司.cn"),
    ("pii_phone", "Call +1 415-223-2671 now", "+1 415-223-2671"),
    ("pii_phone", "Tel: +49 (0)30 901820", "+49 (0)30 901820"),
    ("pii_phone", "+33 6 12 34 56 78", "+33 6 12 34 56 78"),
    ("pii_phone", "+442079460958", "+442079460958"),
    ("pii_phone", "reach me at (415) 223-2671.", "(415) 223-2671"),
    ("pii_phone", "or 415.223.2671,", "415.223.2671"),
    ("pii_phone", "415-223-2671", "415-223-2671"),
    ("pii_phone", "My phone number is 020 7946 0958", "020 7946 0958"),
    ("pii_phone", "Telefon: 089 12345678", "089 12345678"),
    ("pii_phone", "电话：13812345678", "13812345678"),
    ("pii_credit_card", "Visa 4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("pii_credit_card", "card=5555555555554444;", "5555555555554444"),
    ("pii_credit_card", "Amex 3782 822463 10005", "3782 822463 10005"),
    ("pii_credit_card", "6011-1111-1111-1117", "6011-1111-1111-1117"),
    ("pii_iban", "IBAN DE89 3704 0044 0532 0130 00 please", "DE89 3704 0044 0532 0130 00"),
    ("pii_iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
    ("pii_iban", "to FR14 2004 1010 0505 0001 3M02 606 ANNA", "FR14 2004 1010 0505 0001 3M02 606"),
    ("pii_ip", "from 84.17.52.109 at noon", "84.17.52.109"),
    ("pii_ip", "host 203.0.113.77:8080", "203.0.113.77"),
    ("pii_ip", "2a02:8108:50bf:c694:2d3f:1a2b:9c8d:7e6f", "2a02:8108:50bf:c694:2d3f:1a2b:9c8d:7e6f"),
    ("pii_ip", "via 2001:db8:85a3::8a2e:370:7334.", "2001:db8:85a3::8a2e:370:7334"),
    ("pii_ssn", "SSN 123-45-6789", "123-45-6789"),
    ("private_key", KEY_BLOCK, KEY_BLOCK),
    *(
        ("secret_key", before + token + after, token)
        for before, token, after in [
            ("OPENAI_API_KEY=", "sk-" + _token(48), "\n"),
            ("", "sk-proj-" + _token(40), " is it"),
            ('"', "sk-ant-api03-" + _token(60), '"'),
            ("token ", "hf_" + _token(34, string.ascii_letters), ""),
            ("", "ghp_" + _token(36), ","),
            ("use ", "github_pat_" + _token(60), " here"),
            ("", "glpat-" + _token(20), ""),
            ("slack ", "xoxb-" + "123456789012-" + _token(24), ""),
            ("aws ", "AKIA" + _token(16, string.ascii_uppercase)[:13] + "Z7Q", " id"),
            ("key=", "AIza" + _token(35), ""),
            ("stripe ", "sk_live_" + _token(24), "."),
            ("npm ", "npm_" + _token(36), ""),
            ("jwt ", "eyJhbGciOiJIUzI1NiIsInR5" + "cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + _token(43), ""),
            ("bot ", "712345678:AA" + _token(33), ""),
            ("mail ", "SG." + _token(22) + "." + _token(43), ""),
            ("Authorization: Bearer ", _token(40), ""),
            ('api_key: "', _token(32), '"'),
            ("AWS_SECRET_ACCESS_KEY=", _token(40), ""),
            ("client_secret = '", _token(40), "'"),
            ("postgres://app:", "Xk39fLq2pQ", "@db.internal/app"),
        ]
    ),
]
NEGATIVES = [
    "Use cls_token, sep_token and pad_token of the tokenizer.",
    "tokenizer.cls_token_id = tokenizer.convert_tokens_to_ids(cls_token)",
    "token = tokenizer.next_token_from_stream()",
    "password: hunter2",
    "api_key = os.environ['SERVICE_API_KEY_FOR_PRODUCTION']",
    "api_key = YOUR_API_KEY_GOES_RIGHT_HERE",
    "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "secret_key=change_me_before_you_deploy_this",
    "sk-learn-compatible-estimators-and-pipelines",
    "pk_some_table_primary_key_constraint_name",
    "Authorization: Bearer <token>",
    "postgres://user:password@localhost/db",
    "Release 1.2.3 of 2024-05-03 fixes 10.4.12.",
    "version 1.22.333.4444",
    "firmware v4.18.0.305 and Version: 93.12.45.101",
    "Open http://127.0.0.1:8000 or 192.168.1.10",
    "Mask 255.255.255.0, gateway 10.0.0.1, resolver 8.8.8.8",
    "Section 3.1.4.1 says so",
    "order number 1234567890123456",
    "Order 113-4827461-9284750",
    "Tracking 9400111899223197428490",
    "ISBN 978-0-306-40615-7",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "git log: e83c516 (HEAD -> main) 2005-04-07 15:13:13",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "550e8400-e29b-41d4-a716-446655440000",
    "call 555-0123 for a fictional plumber",
    "(212) 555-0199 is no one's",
    "dial +1 212 555 0147 in the film",
    "555-1234",
    "He scored 415 points, then 223, then 2671.",
    "100 - 50 - 30 - 15 = 5 and 1000 - 200 - 300 = 500",
    "The population was +1000000000 by 1804.",
    "3.14159265358979323846",
    "0.4111111111111111",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "4111 1111 1111 1112",
    "DE89 3704 0044 0532 0130 01",
    "ROOM12 3456 HALL",
    "2024-05-03 12:30:45.123456",
    "10:20:30:40",
    "MAC aa:bb:cc:dd:ee:ff",
    "std::vector<std::pair<int, int>> a::b::c",
    "fe80::1 and ::1 are local",
    "123-456-78",
    "000-12-3456 and 666-12-3456",
    "078-05-1120 stood in every wallet",
    "Use the @decorator syntax",
    "follow @jane_doe",
    "git@github.com:owner/repository.git",
    "icon@2x.png and sprite@3x.svg",
    "lodash@4.17.21",
    "user@localhost",
    "a @ b.com means matrix product",
    "f(x) = x@y",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0B\n-----END PUBLIC KEY-----",
    "A PEM file starts with -----BEGIN PRIVATE KEY----- and ends the same way.",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
    "tokens per second: 12345678",
    "the key: aVeryLongCamelCaseIdentifierNameInJava",
    "x = 12345678901234567890",
    "ticker 2330.10 up +12.34567890 %",
    "model-00001-of-00002.safetensors",
    "max_position_embeddings=2048",
]


@pytest.mark.parametrize(
    ("code", "text", "value"), POSITIVES, ids=[f"{c}-{n}" for n, (c, _, _) in enumerate(POSITIVES)]
)
def test_every_listed_shape_is_found_and_only_it(code: str, text: str, value: str) -> None:
    assert [(span.code, text[span.start : span.end]) for span in find_private(text)] == [(code, value)]
    redacted = redact(text)
    assert value not in redacted
    assert redacted == text.replace(value, PLACEHOLDER[code])
    assert find_private(redacted) == []


@pytest.mark.parametrize("text", NEGATIVES)
def test_look_alikes_are_left_alone(text: str) -> None:
    assert find_private(text) == []
    assert redact(text) is text


def test_all_findings_of_a_long_text_are_replaced_at_once_and_by_code() -> None:
    text = "\n".join(text for _, text, _ in POSITIVES if "-----" not in text)
    redacted = redact(text)
    assert find_private(redacted) == []
    for code, source, value in POSITIVES:
        if "-----" not in source:
            assert value not in redacted, code
    only_mail = redact(text, codes=("pii_email",))
    assert "jane.doe@" not in only_mail
    assert "4111 1111 1111 1111" in only_mail


def test_an_unended_private_key_is_taken_to_the_end() -> None:
    text = "key:\n" + KEY_BLOCK[: -len("-----END RSA PRIVATE KEY-----")]
    assert redact(text) == "key:\n[PRIVATE_KEY]"


def test_the_quick_look_never_hides_a_finding() -> None:
    """Each detector finds the same without its hint."""
    for _, text, _ in POSITIVES:
        bits = hints(text, text.encode())
        for hint, detect in DETECTORS:
            assert bits & hint or not list(detect(text)), (detect.__name__, text)


HOSTILE = {
    "letters": "a" * 1_000_000,
    "digits": "1" * 1_000_000,
    "spaced digits": "1 " * 500_000,
    "dashed digits": "415-" * 250_000,
    "at signs": "a@" * 500_000,
    "dots and an at sign": "a." * 500_000 + "@",
    "mail addresses": "a@b.cd " * 140_000,
    "host names": "x@" + "a-" * 499_999,
    "colons": "ab:" * 333_333,
    "octets": "1.1." * 250_000,
    "capitals": "DE89" * 250_000,
    "IBAN groups": "DE89 " + "3704 " * 200_000,
    "token letters": "sk-" * 333_333,
    "assignments": "key=" * 250_000,
    "key names": "api_key" * 142_000,
    "bearers": "bearer " * 142_000,
    "plus": "+1" * 500_000,
    "brackets": "(415) " * 166_000,
    "phone words": "phone 1234567 " * 71_000,
    "key headers": "-----BEGIN " * 90_000,
    "begun keys": "-----BEGIN PRIVATE KEY-----" * 37_000,
    "logins": "a://b:" * 166_000 + "@",
    "jwt": "eyJ" * 333_000,
    "surrogates": "\ud800@" * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_text(name: str) -> None:
    """One second for a megabyte, whatever stands in it: a quadratic pattern would need hours."""
    started = time.process_time()
    redact(HOSTILE[name])
    assert time.process_time() - started < 3.0  # under 1 s on an idle core
