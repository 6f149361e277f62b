"""Short texts in five languages, for experiments where each peer has another one.

Debian's fortune cookies where the packages fortunes-min, -de, -es, -it and -pl are all installed;
they are read there and never copied (most are GPL). Elsewhere sentences that come with peerpoise,
165 in each language.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from node.data.paths import system
from node.data.texts import Texts, strings

BUNDLED = Path(__file__).parent / "languages"
PLACES: Mapping[str, tuple[str, ...]] = {
    "de": ("de/*",),
    "en": ("fortunes", "literature", "riddles"),
    "es": ("es/*",),
    "it": ("it/*",),
    "pl": ("pl/*",),
}
"""Language -> patterns of files of the system's fortunes."""
COUNT, SHORTEST, LONGEST = 400, 20, 300
"""Cookies of each language, and their least and most characters."""
SEED = 20260602
"""Of their choice. Changing it changes what every row number means."""


def read_fortunes() -> tuple[Texts, Texts]:
    """(train, test): columns `text` and `language`; a fifth of every language in test."""
    shared = system()
    by_language = _debian(shared / "games" / "fortunes") if shared else {}
    if not by_language or not all(by_language.values()):
        by_language = {
            name: (BUNDLED / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            for name in PLACES
        }
    texts = [text for cookies in by_language.values() for text in cookies]
    languages = [language for language, cookies in by_language.items() for _ in cookies]
    kinds = torch.from_numpy(np.unique(languages, return_inverse=True)[1].astype(np.int64))
    return Texts(kinds, {"text": strings(texts), "language": strings(languages)}).split()


def _debian(folder: Path) -> dict[str, list[str]]:
    return {language: _cookies(folder, patterns) for language, patterns in PLACES.items()}


def _cookies(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """COUNT of the cookies, always the same; fewer where there are fewer."""
    texts: set[str] = set()
    for file in (file for pattern in patterns for file in folder.glob(pattern)):
        if file.is_file() and file.suffix not in (".dat", ".u8"):
            texts |= {
                cookie.strip()
                for cookie in file.read_text(encoding="utf-8", errors="replace").split("\n%")
            }
    kept = [
        text for text in sorted(texts) if SHORTEST <= len(text) <= LONGEST and "\ufffd" not in text
    ]
    order = np.random.default_rng(SEED).permutation(len(kept))
    return [kept[k] for k in order[:COUNT]]
