"""Small models in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.model_folders import write_model

pytest.importorskip("transformers", reason="pip install 'peerpoise[llm]' brings transformers")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a model as `write_model` into a folder of its own."""

    def write(config: Any = None, **more: str) -> Path:
        return write_model(tmp_path_factory.mktemp("model"), config, **more)

    return write
