"""Short texts in five languages, for experiments where every peer speaks another one.

Debian's fortune cookies where the packages fortunes-min, -de, -es, -it and -pl are all installed; they are read there
and never copied (most are GPL). Elsewhere a hundred and more sentences that come with peerpoise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from node.data.texts import Texts, strings

FOLDER = Path("/usr/share/games/fortunes")
OWN = Path(__file__).parent / "languages"
PLACES: Mapping[str, tuple[str, ...]] = {
    "de": ("de/*",),
    "en": ("fortunes", "literature", "riddles"),
    "es": ("es/*",),
    "it": ("it/*",),
    "pl": ("pl/*",),
}
"""Language -> patterns of files below FOLDER."""
EACH, SHORTEST, LONGEST = 400, 20, 300
"""Of each language so many cookies, of so many characters."""
SEED = 20260602
"""Of the choice. Changing it changes what every row number means."""


def fortunes() -> tuple[Texts, Texts]:
    """(train, test): columns `text` and `language`; a fifth of every language in test."""
    folder = Path(os.environ.get("PEERPOISE_FORTUNES", FOLDER))
    found = {language: _cookies(folder, patterns) for language, patterns in PLACES.items()}
    if not all(found.values()):
        found = {language: (OWN / f"{language}.txt").read_text(encoding="utf-8").splitlines() for language in PLACES}
    texts = [text for some in found.values() for text in some]
    languages = [language for language, some in found.items() for _ in some]
    kinds = torch.from_numpy(np.unique(languages, return_inverse=True)[1].astype(np.int64))
    return Texts(kinds, {"text": strings(texts), "language": strings(languages)}).split()


def _cookies(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """EACH of the cookies, chosen once for all; fewer where there are fewer."""
    found: set[str] = set()
    for file in (file for pattern in patterns for file in folder.glob(pattern)):
        if file.is_file() and file.suffix not in (".dat", ".u8"):
            found |= {cookie.strip() for cookie in file.read_text(encoding="utf-8", errors="replace").split("\n%")}
    kept = [it for it in sorted(found) if SHORTEST <= len(it) <= LONGEST and "\ufffd" not in it]
    order = np.random.default_rng(SEED).permutation(len(kept))
    return [kept[k] for k in order[:EACH]]
