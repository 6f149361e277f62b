"""Files, environment and `--set` into a configuration; every mistake is one sentence."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, get_args

import tomli_w
from pydantic import ValidationError

from node.config import edges, shipped
from node.config.experiment import ExperimentConfig
from node.config.node import NodeConfig
from node.config.run import RunConfig
from node.config.section import Section, readable
from node.encoding import Json, NotUtf8, read_text
from peer import files
from peer.errors import ConfigurationError

ENVIRONMENT_PREFIX = "PEERPOISE_"

BESIDE = (
    ("topology", "file"),
    ("train", "start"),
    ("task", "path"),
    ("task", "text", "test"),
    ("validation", "path"),
)
"""Keys of a run that name files."""

C = TypeVar("C", bound=Section)
Tree = Json
"""Nested values, as TOML has them."""


def load(
    model: type[C],
    files: Sequence[Path],
    settings: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> C:
    """Reads and checks a configuration.

    Files that a run's file names lie beside it; those named by a setting or by the environment are
    looked for in the working directory.

    Precedence: `settings` ("a.b=value", the value in TOML or a bare word; an empty value removes
    the key) > environment (PEERPOISE_SECTION__KEY) > later files > earlier files > defaults.

    Raises:
        ConfigurationError: one sentence naming the file or setting, the key, and what is expected.
    """
    merged: Tree = {}
    folders = chain((file.parent for file in files), repeat(Path()))
    every = layers(model, files, settings, environ)
    for (_, values), folder in zip(every, folders, strict=False):
        take_beside(values, folder)
        merge(merged, values)
    edges.inline(merged)
    try:
        return model(**drop_none(merged))
    except ValidationError as error:
        raise ConfigurationError(sentence(error, model, files)) from None


def take_beside(values: Tree, folder: Path) -> None:
    """Writes from the root, in place, the paths of files that a run's values name beside their
    own.
    """
    for *around, key in BESIDE:
        section: object = values
        for name in around:
            section = section.get(name) if isinstance(section, dict) else None
        file = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(file, str) and file:
            section[key] = str((folder / Path(file).expanduser()).absolute())
            _check_text(".".join([*around, key]), section[key])


def detect_config(file: Path) -> type[ExperimentConfig] | type[NodeConfig]:
    """What a file is to be read as: one that names an identity is a node's, anything else is a run
    or an experiment.

    Raises:
        ConfigurationError: as `load`.
    """
    return NodeConfig if {"name", "identity"} & set(_read(file)) else ExperimentConfig


def layers(
    model: type[Section],
    files: Sequence[Path],
    settings: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> list[tuple[str, Tree]]:
    """(where from, nested values) of everything that is set, lowest precedence first. A removed
    key's value is None.
    """
    stack = [(str(file), _read(file)) for file in files]
    variables = os.environ if environ is None else environ
    for name, value in sorted(variables.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if path[0] in model.model_fields or path[0] not in _all_sections():
            _check_text(f"${name}", value)
            stack.append((f"${name}", nested(path, _value(value))))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigurationError(f"--set {setting!r} is not of the form section.key=value.")
        _check_text(f"--set {key}", setting)
        stack.append((f"--set {key}", nested(key.split("."), _value(value))))
    return stack


def _check_text(where: str, text: str) -> None:
    """Bytes of a command line or of a file's name may be none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{ascii(where)[1:-1]}: {text!a} is not UTF-8 text; write it in UTF-8, or give the "
            "file or folder another name."
        ) from None


def origins(
    model: type[Section], files: Sequence[Path], settings: Sequence[str] = ()
) -> dict[str, str]:
    """section.key -> where its value comes from, for everything that is set; what is not in it is a
    default.
    """
    by_key: dict[str, str] = {}
    for origin, values in layers(model, files, settings):
        by_key |= dict.fromkeys(flatten(values), origin)
    return by_key


def divide(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of a node's file, and those of the run that it names."""
    own = NodeConfig.model_fields.keys() - ExperimentConfig.model_fields.keys()
    of_node = [setting for setting in settings if setting.partition("=")[0].split(".")[0] in own]
    return of_node, [setting for setting in settings if setting not in of_node]


def write(config: Section, file: Path, comments: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes a configuration as TOML that `load` reads back equal (None is left out: TOML has no
    null). `comments`: section -> what is written above it.

    Raises:
        StorageError: the disk refuses.
    """
    text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    for section, comment in comments.items():
        text = text.replace(f"[{section}]\n", f"# {comment}\n[{section}]\n")
    files.atomic_write(file, text.encode())


def flatten(values: Mapping[str, object], prefix: str = "") -> Tree:
    """Nested values as {"section.key": value}."""
    flat: Tree = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _all_sections() -> set[str]:
    """The environment serves both files: a section of the other one is skipped."""
    return {*ExperimentConfig.model_fields, *NodeConfig.model_fields}


def _read(file: Path) -> Tree:
    try:
        return tomllib.loads(read_text(shipped.example(file)))
    except FileNotFoundError:
        hint = "" if file.suffix else ", or take an example's name (peerpoise show)"
        raise ConfigurationError(f"There is no file {file}; check the path{hint}.") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{file} is a folder; name the TOML file in it.") from None
    except PermissionError:
        raise ConfigurationError(
            f"{file} may not be read by this user; check its permissions."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{file} can't be read ({error.strerror or error}); check the path."
        ) from None
    except NotUtf8 as error:
        raise ConfigurationError(f"{file} is not valid TOML: it {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}.") from None
    except (ValueError, RecursionError):  # of Python: thousands of digits or of brackets
        raise ConfigurationError(
            f"{file} has a number that is too long, or lists too deep in one another."
        ) from None


def merge(into: Tree, new: Mapping[str, object]) -> None:
    """Lays nested values over others, in place."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def nested(path: Sequence[str], value: object) -> Tree:
    """["a", "b"], 1 -> {"a": {"b": 1}}."""
    *around, last = path
    tree: Tree = {last: value}
    for key in reversed(around):
        tree = {key: tree}
    return tree


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"v = {text}")["v"] if text else None
    except (ValueError, RecursionError):
        return text


def drop_none(values: Mapping[str, object]) -> Tree:
    """The values without the keys that were set to None."""
    kept = {
        key: drop_none(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    return {key: value for key, value in kept.items() if value is not None}


def sentence(
    error: ValidationError,
    model: type[Section],
    files: Sequence[Path] = (),
    *,
    within: str = "",
    of: str = "",
) -> str:
    """One sentence for pydantic's complaint about what the files say.

    `model`: what was read; `within`: the section it was; `of`: the algorithm, say, that its options
    belong to.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(filter(None, [within, *map(str, first["loc"])])) or "the file"
    source = f" ({', '.join(map(str, files))})" if files else ""
    owner = f" ({of})" if of else ""
    match first["type"]:
        case "extra_forbidden":
            hints = _elsewhere(model, first["loc"]) + _nearest(model, first["loc"])
            what = f"unknown key{owner}{hints}"
        case "union_tag_not_found":
            what = f"{first['ctx']['discriminator']} is missing"
        case "union_tag_invalid":
            what = "{discriminator} {tag!r} is unknown; choose among {expected_tags}".format(
                **first["ctx"]
            )
        case _:
            what = first["msg"].removeprefix("Value error, ") + owner
    count = error.error_count() - 1
    more = f" ({count} more mistake{'s follow' if count > 1 else ' follows'}.)" if count else ""
    return f"Configuration{source}: {readable(where)}: {what}.{more}"


def _elsewhere(model: type[Section], location: Sequence[int | str]) -> str:
    """Which other file has this key; empty: none."""
    if issubclass(model, NodeConfig) and location[0] in ExperimentConfig.model_fields:
        return "; it belongs in the run's file, run.toml, which is the same at all nodes"
    if issubclass(model, RunConfig) and location[0] in NodeConfig.model_fields:
        return "; it belongs in the node's own file, node.toml"
    return ""


def _nearest(model: type[Section], location: Sequence[int | str]) -> str:
    *around, key = location
    models = {model}
    for step in around:  # an index, or the name of a variant, is no field
        inner = [each.model_fields[str(step)] for each in models if str(step) in each.model_fields]
        models = {section for field in inner for section in _sections(field.annotation)} or models
    names = sorted({name for each in models for name in each.model_fields})
    near = difflib.get_close_matches(str(key), names, n=1)
    return f"; the nearest is {near[0]}" if near else ""


def _sections(annotation: object) -> Iterator[type[Section]]:
    """Those that a type is made of: of `dict[str, Number | Category]` both."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
