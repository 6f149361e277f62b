"""No text is read or written in the locale's encoding: every call says which. Linters see it where
they know types.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [
    file for folder in ("node", "peer", "docs", "deploy") for file in (ROOT / folder).rglob("*.py")
]
TEXT = {"read_text", "write_text"}
PROCESSES = {"run", "Popen", "check_output"}


def by_locale(source: str) -> Iterator[str]:
    """Calls that leave the encoding of text to the locale."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and "encoding" not in {each.arg for each in node.keywords}
            and _of_text(node)
        ):
            yield ast.unparse(node)


def _of_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in {"open", "fdopen"}:
        modes = [
            each.value
            for each in (*call.args, *(k.value for k in call.keywords))
            if isinstance(each, ast.Constant)
        ]
        return any(
            isinstance(mode, str) and mode in {"r", "w", "a", "x", "r+", "w+", "a+"}
            for mode in modes
        )
    return (
        name in TEXT and isinstance(call.func, ast.Attribute)
    ) or (  # a plain read_text is node.encoding's
        name in PROCESSES
        and any(each.arg in {"text", "universal_newlines"} for each in call.keywords)
    )


def test_every_text_has_an_encoding() -> None:
    assert len(FILES) > 100
    assert {
        str(file.relative_to(ROOT)): calls
        for file in FILES
        if (calls := [*by_locale(file.read_text("utf-8"))])
    } == {}


def test_a_call_without_is_seen() -> None:
    source = (
        "path.read_text()\nopen(p, 'w')\nopen(p, 'rb')\nsubprocess.run(w, "
        "text=True)\np.write_text(t, encoding='u8')\n"
    )
    assert list(by_locale(source)) == [
        "path.read_text()",
        "open(p, 'w')",
        "subprocess.run(w, text=True)",
    ]
