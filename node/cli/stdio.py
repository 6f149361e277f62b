"""Standard output and error whose encoding lacks some of our characters: Latin-1, GBK, ASCII."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

SPELLED = str.maketrans(
    {
        "ε": "eps",
        "δ": "delta",
        "σ": "sigma",
        "π": "pi",
        "Σ": "sum",
        "✓": "ok",
        "✗": "x",
        "†": "*",
        "→": "->",
    }
    | {
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "±": "+/-",
        "×": "x",
        "÷": "/",
        "·": "-",
        "–": "-",
        "—": "-",
        "━": "=",
    }
    | {"…": "...", "„": '"', "“": '"', "”": '"', "‘": "'", "’": "'"}
)
"""How what we print reads in ASCII."""
ERRORS = "peerpoise-spelled"


def spell() -> None:
    """From now on, what the encodings of standard output and error lack is spelled in ASCII, and
    never an error.
    """
    codecs.register_error(ERRORS, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Letters lose their accents; what has no spelling is a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(SPELLED)
    return "".join(_ascii(character) for character in text), error.end


def _ascii(character: str) -> str:
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii") or "?"
