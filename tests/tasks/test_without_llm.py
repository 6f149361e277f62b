"""The core without the extra llm: commands and lists work, the task says what is missing."""

from __future__ import annotations

import subprocess
import sys

HIDDEN = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "peft", "gguf", "accelerate", "huggingface_hub", "tokenizers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code], capture_output=True, text=True, check=False
    )


def test_the_commands_run() -> None:
    done = python("from peerpoise import main; sys.argv = ['peerpoise', 'algorithms']; main()")
    assert done.returncode == 0, done.stderr
    assert "dpdl" in done.stdout


def test_a_language_model_is_a_sentence_that_names_the_extra() -> None:
    done = python(
        "import numpy as np\nfrom node.config import RunConfig\nfrom node.tasks import TASKS, "
        "make\nprint(*TASKS)\n"
        "run = RunConfig(privacy={'mode': 'none'}, task={'name': 'causal-lm', 'model': 'bytes', "
        "'data': 'fortunes'})\n"
        "from peer.errors import ConfigurationError\n"
        "try:\n    make(run, np.arange(3))\nexcept ConfigurationError as error:\n    print(error)"
    )
    assert done.stdout.splitlines() == [
        "causal-lm classification reasoning regression",
        "Language models need transformers: pip install 'peerpoise[llm]'.",
    ], done.stderr
