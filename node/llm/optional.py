"""transformers, imported when it is needed, without its progress bars and advice."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from peer.errors import ConfigurationError


@cache
def transformers() -> Any:
    """The module.

    Raises:
        ConfigurationError: it, or what it needs, is not installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers as found
    except ImportError as error:
        raise missing(error) from None
    library: Any = found
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return library


def peft() -> Any:
    """The module. Raises as `transformers`."""
    transformers()
    try:
        import peft as found
    except ImportError as error:
        raise missing(error) from None
    return found


def missing(error: ImportError) -> ConfigurationError:
    """The sentence for a package that is not there."""
    return ConfigurationError(
        f"Language models need {error.name or error}: pip install 'peerpoise[llm]'."
    )


@contextmanager
def offline() -> Iterator[None]:
    """Nothing inside asks a hub: what is on this machine is meant."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
