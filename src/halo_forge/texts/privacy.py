"""Personal data and secrets in a text, found by their shapes: best effort, never a promise.

What is found: e-mail addresses, telephone numbers (international; North American with separators; others only after a
word such as "phone"), payment cards (issuer, length, Luhn), IBANs (country, length, mod 97), public IP addresses, US
social security numbers, access tokens of known shapes or assigned to a key-like name, private keys. What is not: names,
addresses, birth dates, passwords, bare digits without a check sum, anything spelled out or split over messages.
Numbers reserved for fiction (555-0100 to 555-0199) and private or loopback addresses are nobody's and are not reported.

Every pattern starts at a token border and repeats a bounded number of times, so that time is linear in the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

PLACEHOLDER = {
    "private_key": "[PRIVATE_KEY]", "secret_key": "[SECRET]", "pii_email": "[EMAIL]", "pii_phone": "[PHONE]",
    "pii_credit_card": "[CREDIT_CARD]", "pii_iban": "[IBAN]", "pii_ip": "[IP_ADDRESS]", "pii_ssn": "[SSN]",
}  # fmt: skip
"""What a mend writes. No placeholder is itself found by any pattern, so a mend is idempotent."""


class Span(NamedTuple):
    code: str
    start: int
    end: int


# ------------------------------------------------------------------------------------------- the quick look

_DIGITS, _LETTERS = b"0123456789", bytes(range(65, 91)) + bytes(range(97, 123))
_TOKEN_LETTERS = _DIGITS + _LETTERS + b"_-+/="
_SHAPE = bytes.maketrans(_DIGITS + _LETTERS, b"0" * 10 + b"x" * 52)
_TOKEN_SHAPE = bytes.maketrans(_TOKEN_LETTERS, b"x" * len(_TOKEN_LETTERS))
_LONG_TOKEN = b"x" * 20
_HEX_DIGITS = b"0123456789abcdefABCDEF"


KEY, TOKEN, AT, LETTERED, ADDRESS, CARD, GROUPED, PLUS, CUED = (1 << bit for bit in range(9))
_CUES = (
    *(
        "phone",
        "tel",
        "mobil",
        "cell",
        "celular",
        "móvil",
        "fax",
        "whatsapp",
        "call",
        "text",
        "dial",
        "hotline",
        "handy",
    ),
    *("éphone", "电话", "手机", "電話"),
)


def hints(text: str, raw: bytes) -> int:
    """Which detectors could find something; 0 means that `find_private` would find nothing. `raw` is text in UTF-8.

    Costs about 4 us for 550 characters: this is what every row pays.
    """
    shape = raw.translate(_SHAPE)
    bits = 0
    if "-----BEGIN" in text:
        bits |= KEY
    if "@" in text:
        bits |= AT
    if b"xx00" in shape:
        bits |= LETTERED
    if _LONG_TOKEN in raw.translate(_TOKEN_SHAPE):
        bits |= TOKEN
    joined = shape.translate(None, b" ().-/")
    if b"0000000" in joined:
        bits |= _number_hints(text, shape, joined)
    dotted = b"0.0" in shape and b"..." in raw.translate(None, _DIGITS)
    if dotted or (":" in text and b":::" in raw.translate(None, _HEX_DIGITS)):
        bits |= ADDRESS
    return bits


def _number_hints(text: str, shape: bytes, joined: bytes) -> int:
    """Sums such as 100 - 50 - 30 have many digits too, so what kind of number it could be is asked first."""
    bits = CARD if b"0000000000000" in joined else 0
    if b"0-0000" in shape or b"0.0000" in shape or b"0 0000" in shape:
        bits |= GROUPED
    if b"+0" in shape:
        bits |= PLUS
    lowered = text.lower()
    return bits | CUED if any(cue in lowered for cue in _CUES) else bits


# ----------------------------------------------------------------------------------------------- detectors

_EMAIL = re.compile(
    r"(?<![\w.+%-])[^\W_][\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}([^\W\d_]{2,24})(?![\w@-])"
)
_FILE_ENDINGS = frozenset(
    (
        *("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "jsx", "ts", "tsx"),
        *("mjs", "py", "rb", "go", "rs", "java", "html", "htm", "xml", "json", "yaml", "yml"),
        *("md", "txt", "zip", "gz", "tar", "exe", "dll", "so", "whl", "jar", "lock", "min", "map"),
    )
)
_INTERNATIONAL = re.compile(r"(?<![\w+.,/=-])\+[1-9](?:[ .()/-]{0,2}\d){7,14}(?![\d%]|[.,]\d|\w)", re.A)
_DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")
_GROUPED = re.compile(r"[0-9]+")
_NORTH_AMERICAN = re.compile(
    r"(?<![\w+./-])(?:\+?1[ .-])?(?:\(([2-9]\d\d)\) ?|([2-9]\d\d)([.-]))([2-9]\d\d)[ .-](\d{4})(?![\w-]|\.\d)",
    re.A,
)
_BARE_NUMBER = re.compile(r"(?<![\w+.,=/-])\(?\+?\d(?:[ .()/-]{0,2}\d){6,14}(?![\d%]|[.,]\d|\w)", re.A)
_PHONE_CUE = re.compile(
    r"(?:(?<![A-Za-z])(?:phone|telephone|tel|mobile|cell|cellphone|fax|whatsapp|call|text|dial|hotline|telefon|handy"
    r"|mobil|téléphone|teléfono|telefono|telefone|móvil|celular)|电话|手机|電話)"
    r"(?:[ \t]{1,3}(?:me|us|him|her|them|number|no\.?|nr\.?|nummer|is|at|on|n°)){0,4}[ \t]{0,3}[:.#：]?[ \t]{0,3}$",
    re.I | re.A,
)
_CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)", re.A)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])", re.A)
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "PT",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT",
}
_IBAN_LENGTH = {country: length for length, names in _IBAN_COUNTRIES.items() for country in names.split()}
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.:-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.\d)", re.A)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?![\w:]|\.\d)", re.A)
_VERSION_CUE = re.compile(r"(?:\bv|version|release|build|rev|section|chapter|article|§|firmware|driver)[ .:=]*$", re.I)
_RESOLVERS = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "1.2.3.4", "4.3.2.1"))
_SSN = re.compile(r"(?<![\w./-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-]|\.\d)", re.A)
_KNOWN_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
        (?:sk|pk|rk)[-_][\w-]{20,200}
      | hf_[A-Za-z0-9]{24,64} | gh[pousr]_[A-Za-z0-9]{30,255} | github_pat_\w{30,255} | glpat-[\w-]{18,64}
      | xox[abeprs]-[\w-]{16,255} | (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z]) | AIza[\w-]{35}(?![\w-])
      | ya29\.[\w-]{20,255} | npm_[A-Za-z0-9]{36} | pypi-AgEI[\w-]{40,255} | dop_v1_[0-9a-f]{64}
      | shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32} | SG\.[\w-]{16,32}\.[\w-]{32,64} | sq0(?:atp|csp)-[\w-]{20,64}
      | eyJ[\w-]{17,2000}\.eyJ[\w-]{4,4000}(?:\.[\w-]{10,1000})? | \d{8,10}:AA[\w-]{32,34}(?![\w-])
      | (?:ak|r8|gsk|xai|pplx|tvly|lin_api|figd|dapi|nvapi|secret)[-_][A-Za-z0-9_-]{30,128}
    )""",
    re.X | re.A,
)
_ASSIGNED = re.compile(
    r"(?<!public[_ -])(?:key|token|secret|password|passwd|pwd)[\"']?[ \t]{0,4}(?:=>|:=|[:=])[ \t]{0,4}[\"'`]?"
    r"([A-Za-z0-9_+/=-]{20,200})(?![A-Za-z0-9_.(\[])",
    re.I | re.A,
)
_BEARER = re.compile(r"\bbearer[ \t]{1,4}([A-Za-z0-9_.~+/-]{20,2000}={0,2})", re.I | re.A)
_URL_LOGIN = re.compile(
    r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'<>]{1,64}:([^\s:/@\"'<>]{3,128})@[\w.-]", re.I
)
_KEY_BEGIN = re.compile(r"-----BEGIN[ A-Z0-9]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END[ A-Z0-9]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_NO_SECRET = re.compile(
    r"your|example[_-]|placeholder|insert|changeme|redacted|dummy|\*{3}|x{6}|\.{3}|[<\[]|\$\{", re.I
)


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        is_remote = text[match.end() : match.end() + 1] == ":" and text.startswith("git@", match.start())
        if match[1].lower() not in _FILE_ENDINGS and not is_remote:
            yield Span("pii_email", match.start(), match.end())


def _international_phones(text: str) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text):
        groups = _GROUPED.findall(match[0])
        digits = "".join(groups)
        is_number = len(digits) >= 10 if len(groups) == 1 else sum(len(group) == 1 for group in groups[1:]) <= 1
        if is_number and not digits.endswith("00000") and not _is_fiction(digits) and not _DECIMAL.fullmatch(match[0]):
            yield Span("pii_phone", match.start(), match.end())


def _american_phones(text: str) -> Iterator[Span]:
    for match in _NORTH_AMERICAN.finditer(text):
        if not _is_fiction("".join(_GROUPED.findall(match[0]))):
            yield Span("pii_phone", match.start(), match.end())


def _named_phones(text: str) -> Iterator[Span]:
    for match in _BARE_NUMBER.finditer(text):
        digits = "".join(_GROUPED.findall(match[0]))
        is_number = 8 <= len(digits) <= 15 and len(set(digits)) > 1 and not _is_fiction(digits)
        if is_number and _PHONE_CUE.search(text, max(0, match.start() - 48), match.start()):
            yield Span("pii_phone", match.start(), match.end())


def _is_fiction(digits: str) -> bool:
    """555-0100 to 555-0199, in any North American area."""
    return len(digits) <= 11 and digits[-7:-2] == "55501"


def _luhn(digits: str) -> bool:
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def _issuer_fits(digits: str) -> bool:
    """Prefix and length of a payment scheme; without it every tenth order number would pass the check sum."""
    length, first2, first4 = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return length in (13, 16, 19)
    if 51 <= first2 <= 55 or 2221 <= first4 <= 2720:
        return length == 16
    if first2 in (34, 37):
        return length == 15
    if first4 == 6011 or first2 == 65 or 6440 <= first4 <= 6499 or 3528 <= first4 <= 3589:
        return length == 16
    if first2 == 62:
        return 16 <= length <= 19
    return (first2 in (36, 38) or 3000 <= first4 <= 3059) and length == 14


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        sizes = [len(group) for group in _GROUPED.findall(match[0])]
        digits = "".join(_GROUPED.findall(match[0]))
        is_grouped = len(sizes) == 1 or sizes[:-1] in ([4, 4, 4], [4, 4, 4, 4], [4, 6])
        if is_grouped and len(set(digits)) > 1 and _issuer_fits(digits) and _luhn(digits):
            yield Span("pii_credit_card", match.start(), match.end())


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        words = match[0].split(" ")
        for used in range(len(words), 0, -1):  # a capitalised word after it may have been taken for its last group
            number = "".join(words[:used])
            if _IBAN_LENGTH.get(number[:2]) == len(number):
                rest = number[4:] + number[:4]
                if int("".join(str(int(letter, 36)) for letter in rest)) % 97 == 1:
                    yield Span("pii_iban", match.start(), match.start() + len(" ".join(words[:used])))
                break


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            is_reserved = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
            is_mask = match[0].startswith(("0.", "255.")) or match[0].endswith(".0")
            in_house = isinstance(address, ipaddress.IPv4Address) and any(address in net for net in _IN_HOUSE)
            if is_reserved or is_mask or in_house or match[0] in _RESOLVERS:
                continue
            if not _VERSION_CUE.search(text, max(0, match.start() - 16), match.start()):
                yield Span("pii_ip", match.start(), match.end())


_IN_HOUSE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


def _numbers(text: str) -> Iterator[Span]:
    for match in _SSN.finditer(text):
        if match[0] not in ("078-05-1120", "219-09-9999"):  # printed in advertisements, and void since
            yield Span("pii_ssn", match.start(), match.end())


def _is_random(value: str, *, strict: bool) -> bool:
    """Whether a value looks drawn rather than written: no placeholder, several characters, digits among the letters."""
    if _NO_SECRET.search(value) or len(set(value)) < 6:
        return False
    has_digit = any(letter.isdigit() for letter in value)
    if not strict:
        return has_digit or (value.lower() != value and "-" not in value[4:])
    num_digits = sum(letter.isdigit() for letter in value)
    return num_digits >= 3 and num_digits < len(value) and len(set(value)) >= 12


def _secrets(text: str) -> Iterator[Span]:
    for match in _KNOWN_TOKEN.finditer(text):
        if _is_random(match[0], strict=False):
            yield Span("secret_key", match.start(), match.end())
    for pattern in (_ASSIGNED, _BEARER):
        for match in pattern.finditer(text):
            if _is_random(match[1], strict=True):
                yield Span("secret_key", match.start(1), match.end(1))


def _url_logins(text: str) -> Iterator[Span]:
    if "://" in text:
        for match in _URL_LOGIN.finditer(text):
            if not _NO_SECRET.search(match[1]) and match[1].lower() not in ("password", "pass", "pwd", "secret"):
                yield Span("secret_key", match.start(1), match.end(1))


def _private_keys(text: str) -> Iterator[Span]:
    at = text.find("-----BEGIN")
    while at >= 0:
        begin = _KEY_BEGIN.match(text, at)
        if begin is None:
            at = text.find("-----BEGIN", at + 1)
            continue
        end = _KEY_END.search(text, begin.end())
        stop = end.end() if end else len(text)
        if stop - begin.end() >= 60:  # a bare header is talk about keys
            yield Span("private_key", at, stop)
        at = text.find("-----BEGIN", stop)


DETECTORS: tuple[tuple[int, Callable[[str], Iterator[Span]]], ...] = (
    (KEY, _private_keys), (TOKEN, _secrets), (AT, _url_logins), (AT, _emails), (LETTERED, _ibans), (CARD, _cards),
    (GROUPED, _numbers), (ADDRESS, _addresses), (PLUS, _international_phones), (GROUPED, _american_phones),
    (CUED, _named_phones),
)  # fmt: skip
"""Each with its hint, the surest first: of two findings that overlap, the earlier detector's stands."""


def find_private(text: str) -> list[Span]:
    """All findings in order of position; none overlaps another."""
    bits = hints(text, text.encode("utf-8", "surrogatepass"))
    if not bits:
        return []
    spans: list[Span] = []
    taken = bytearray(len(text))
    for hint, detect in DETECTORS:
        for span in detect(text) if bits & hint else ():
            if taken.find(1, span.start, span.end) < 0:
                taken[span.start : span.end] = b"\1" * (span.end - span.start)
                spans.append(span)
    return sorted(spans, key=lambda span: span.start)


def redact(text: str, codes: Collection[str] | None = None) -> str:
    """`text` with every finding (of these codes; None: of all) replaced by its placeholder, and again until none is
    left: what stood beside a finding can become one when the finding is gone."""
    for _ in range(8):
        once = replaced(text, [span for span in find_private(text) if codes is None or span.code in codes])
        if once == text:
            break
        text = once
    return text


def replaced(text: str, spans: Sequence[Span]) -> str:
    """`text` with the placeholders of these spans (in order, not overlapping) in their places."""
    if not spans:
        return text
    parts, last = [], 0
    for span in spans:
        parts += [text[last : span.start], PLACEHOLDER[span.code]]
        last = span.end
    return "".join(parts) + text[last:]
