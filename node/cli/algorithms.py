"""What the algorithms say of themselves, read from their source: importing them would load torch.

A module's docstring starts with one sentence, names the paper, and lists what it did its own way
under the lines "Deviations", "Reconstructions" and "Not covered".
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from node.encoding import Json

FOLDER = Path(__file__).parents[1] / "algorithms"
PAPER = re.compile(r"arXiv[: ]\d{4}\.\d{4,5}")
SECTIONS = ("Deviations", "Reconstructions", "Not covered")


def algorithms() -> list[Json]:
    """Name, summary, paper (arXiv number, or ""), whose second name it is ("": its own) and the
    three lists of every algorithm in the tables, sorted.
    """
    entries = {name: _describe(name, place) for name, place in table("ALGORITHMS").items()}
    for name, own in table("NOISED").items():
        entries[name] = {
            **entries[own],
            "name": name,
            "summary": f"{own} by a name that never runs without noise (mode strict only)",
            "second_name_of": own,
        }
    return [entries[name] for name in sorted(entries)]


def table(name: str) -> dict[str, str]:
    """A table of `node.algorithms`, without importing it."""
    for statement in ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8")).body:
        if (
            isinstance(statement, ast.AnnAssign)
            and ast.unparse(statement.target) == name
            and statement.value
        ):
            literal: dict[str, str] = ast.literal_eval(statement.value)
            return literal
    raise LookupError(f"node/algorithms/__init__.py has no table {name}")


def _describe(name: str, place: str) -> dict[str, object]:
    module, _, kind = place.partition(":")
    tree = ast.parse((FOLDER / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    sentence = _sentence(text, kind)
    paper = PAPER.search(sentence) or PAPER.search(text)
    return {
        "name": name,
        "summary": re.sub(r" \([^()]*arXiv[^()]*\)", "", sentence),
        "paper": paper[0] if paper else "",
        "second_name_of": "",
        **{section.lower().replace(" ", "_"): _bullets(text, section) for section in SECTIONS},
    }


def _sentence(text: str, kind: str) -> str:
    """What the module says of "`Kind`: …" where it holds several, else its first sentence."""
    words = " ".join(text.split())
    own = re.search(rf"`{kind}`: (.+?)(?:;|\.(?:\s|$))", words)
    return own[1] if own else words.partition(". ")[0].rstrip(".")


def _bullets(text: str, section: str) -> list[str]:
    """The items of one list: indented "* …" lines until the next line that is not indented."""
    after = re.search(rf"^{section}\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    items = (
        re.split(r"^\s*\* ", inspect.cleandoc(after[1]), flags=re.MULTILINE)[1:] if after else []
    )
    bullets = [" ".join(item.split()) for item in items]
    return [item for item in bullets if item != "none."]
