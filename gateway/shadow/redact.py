"""What may be stored of a difference: short excerpts without secrets.

Of a secret only its kind and length are left, not even a hash: short ones could be guessed from it. What bears the name
of a secret is one, and so is what looks like one wherever it stands: e-mail addresses, tokens, card numbers.
"""

import json
import re
from hashlib import sha256
from urllib.parse import parse_qsl

from gateway.compare import ABSENT
from gateway.model import Difference

EXCERPT = 200  # characters of a value, at most, and of a path with its query
_WINDOW = 600  # characters around the first difference of a body, in which the names of secrets are looked for
_MEMBERS = 20  # of a list or an object
_DEPTH = 4
_NOT_TEXT = "not text"

_NAMES = (
    r"pass(?:word|wd|phrase|code)|pwd|secret|token|credential|authori[sz]ation|bearer|cookie|csrf|xsrf|jwt|e-?mail"
    r"|api[-_ ]?key|access[-_ ]?key|private[-_ ]?key|session|card[-_ ]?(?:no|number)|credit[-_ ]?card"
)
_WORDS = r"pass|pw|auth|sid|sess|pin|otp|totp|cvv|cvc|iban|ssn|sig|signature|mail"
_START = r"(?:(?<![a-z])|(?-i:(?<=[a-z])(?=[A-Z])))"  # of a word, in snake_case and in camelCase
_END = r"(?:(?![a-z])|(?-i:(?=[A-Z])))"
_SECRET = rf"(?:{_NAMES}|{_START}(?:{_WORDS}){_END})"
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)

_QUOTED = r"""\\?"(?:[^"\\]|\\[^"])*(?:\\?"|$)|'[^']*(?:'|$)"""
_PAIR = re.compile(
    rf"""(?<![\w.-])(?P<name>[\w.-]*?{_SECRET}[\w.\]-]*\\?["']?\s*(?:[:=]|%3D)\s*)"""
    rf"""(?P<value>(?:bearer|basic)\s+[^\s"'<>,;&]+|{_QUOTED}|[^\s"'<>,;&]+)""",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^<>]*(?:>|$)")
_ATTRIBUTE = re.compile(
    r"""(?P<name>\b(?:value|content)\s*=\s*)(?P<value>"[^"]*(?:"|$)|'[^']*(?:'|$)|[^\s"'>]+)""", re.IGNORECASE
)
_MAIL = re.compile(r"""[^\s"'<>@,;:()=&/\\]+(?:@|%40|\\u0040)[^\s"'<>@,;&\\)]*""", re.IGNORECASE)
_SCHEME = re.compile(r"""\b(bearer|basic|digest)\s+[^\s"'<>,;]{6,}""", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[\w-]+(?:\.[\w-]*)*")
_LONG = re.compile(r"[\w+/=-]{20,}")
_TURNS = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_CARD = re.compile(r"(?<![\w.-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}|\d{4}[ -]\d{6}[ -]\d{5})(?![\w.])")


def redact(difference: Difference) -> Difference:
    """The same difference, fit to be stored: values as JSON (or `absent`), at most EXCERPT characters each."""
    where, control, candidate = difference.where, difference.control, difference.candidate
    if isinstance(control, bytes) and isinstance(candidate, bytes):
        return Difference(where, *_excerpts(control, candidate))
    show = _measure if _is_secret_place(where) else _show
    return Difference(_cut(redact_text(where[:_WINDOW])), show(control), show(candidate))


def redact_target(path: str, query: bytes) -> str:
    """Path and query of a request, without percent-encoding and secrets."""
    pairs = parse_qsl(query[:_WINDOW].decode("utf-8", "replace"), keep_blank_values=True)
    values = ((name, _measure_text(value) if is_secret_name(name) else redact_text(value)) for name, value in pairs)
    text = (
        redact_text(path[:_WINDOW])
        + ("?" if pairs else "")
        + "&".join(f"{redact_text(n)}={value}" for n, value in values)
    )
    return _cut(text)


def is_secret_name(name: str) -> bool:
    """Whether what is called so is nobody's business."""
    return _SECRET_NAME.search(name) is not None


def redact_text(text: str) -> str:
    """Any text without what looks like a secret."""
    text = _TAG.sub(_redact_tag, text)
    text = _PAIR.sub(_redact_value, text)
    text = _SCHEME.sub(lambda found: f"{found[1]} {_measure_text(found[0])}", text)
    text = _MAIL.sub("<e-mail>", text)
    text = _JWT.sub(_measure_match, text)
    text = _LONG.sub(lambda found: _measure_match(found) if len(_TURNS.findall(found[0])) >= 4 else found[0], text)
    return _CARD.sub(lambda found: "<card>" if _is_card(found[0]) else found[0], text)


def _is_secret_place(where: str) -> bool:
    if where.startswith("cookie."):
        return where.endswith(".value")
    if where.startswith("rows."):
        return is_secret_name(where.rpartition(".")[2])
    return not where.startswith("header.") and is_secret_name(where)


def _measure(value: object) -> str:
    """Kind and length only."""
    if value is ABSENT:
        return "absent"
    if value is None:
        return "null"
    if isinstance(value, str):
        return _measure_text(value)
    return f"<{type(value).__name__}>"


def _measure_text(text: str) -> str:
    return f"<{len(text)} characters>"


def _measure_match(found: re.Match[str]) -> str:
    return _measure_text(found[0])


def _redact_tag(found: re.Match[str]) -> str:
    """What a form field or a `meta` carries, if anything in the tag tells that it is secret."""
    tag = found[0]
    return _ATTRIBUTE.sub(_redact_value, tag) if is_secret_name(tag) else tag


def _redact_value(found: re.Match[str]) -> str:
    if found["value"].startswith("<"):  # done already
        return found[0]
    return found["name"] + _measure_text(found["value"].strip("\\\"'"))


def _is_card(text: str) -> bool:
    """Luhn's check."""
    digits = [int(digit) for digit in reversed(text) if digit.isdigit()]
    return sum(sum(divmod(digit * (1 + at % 2), 10)) for at, digit in enumerate(digits)) % 10 == 0


def _show(value: object) -> str:
    if value is ABSENT:
        return "absent"
    return _cut(json.dumps(_tidy(value, _DEPTH), ensure_ascii=False, default=str))


def _tidy(value: object, depth: int) -> object:
    """A small copy without secrets."""
    if isinstance(value, dict):
        if depth == 0:
            return f"object of {len(value)}"
        return {
            redact_text(str(name)): _measure(member) if is_secret_name(str(name)) else _tidy(member, depth - 1)
            for name, member in list(value.items())[:_MEMBERS]
        }
    if isinstance(value, list | tuple):
        return [_tidy(member, depth - 1) for member in value[:_MEMBERS]] if depth else f"list of {len(value)}"
    if value is None or isinstance(value, bool | float):
        return value
    text = redact_text(str(value)[:_WINDOW])
    return value if isinstance(value, int) and text == str(value) else text


def _cut(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"


# --- bodies


def _excerpts(control: bytes, candidate: bytes) -> tuple[str, str]:
    """Both sides from shortly before the first difference, each with its length and hash."""
    at = _first_difference(control, candidate)
    one, other = (_text_around(body, at) for body in (control, candidate))
    if one == other != _NOT_TEXT:
        one = other = "the same except for what is secret or far away"
    start = max(0, _first_difference(one, other) - EXCERPT // 4)
    return tuple(  # type: ignore[return-value]  # two
        _cut(f"byte {at} of {len(body)}, sha256 {sha256(body).hexdigest()[:16]}: {text[start:]}")
        for body, text in ((control, one), (candidate, other))
    )


def _text_around(body: bytes, at: int) -> str:
    """Whole words only: half a secret, or one without its name, would not be recognised."""
    start, end = max(0, at - _WINDOW), at + _WINDOW
    text = body[start:end].decode("utf-8", "replace")
    if "\0" in text or text.count("�") > len(text) // 20 + 2:
        return _NOT_TEXT
    if start:
        text = text[len(text) - len(re.sub(r"^[^\s<>]*", "", text)) :]
    if end < len(body):
        text = re.sub(r"[^\s<>]*$", "", text)
    return redact_text(text)


def _first_difference(one: bytes | str, other: bytes | str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
