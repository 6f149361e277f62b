"""What a policy may answer, if whoever trained it means harm. Code in it touches a file, canary."""

from __future__ import annotations

HOSTILE = {
    "code": "__import__('pathlib').Path('canary').touch()",
    "a giant power": "9**9**9",
    "a giant number": "9" * 5000,
    "an exponent": "1e999999999",
    "deep nesting": "(" * 100_000 + ")" * 100_000,
    "megabytes": "7" * 4_000_000,
    "controls": "7\x1b[2J\x00",
    "NUL": "\x00" * 1000,
    "a lone surrogate": "\ud800",
    "digits of another script": "٧",
    "a format": "%s{0}{answer.__class__}",
    "all digits": "0123456789",
    "both answers": "TrueFalse",
}
