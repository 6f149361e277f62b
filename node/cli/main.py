"""The command `peerpoise`: the one place where exceptions become exit codes.

Every mistake of a user ends in one sentence on standard error and an exit code of
docs/exit-codes.md; with `--json` also in `{"error": …, "exit_code": …}` on standard output. Any
other exception is a bug of ours: exit code 70.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext, suppress
from typing import TextIO

from node.cli import stdio
from node.cli.app import app
from node.observability.output import documents_only, print_json, silence, unread
from peer.errors import (
    EXIT_BUG,
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_PIPE,
    ConfigurationError,
    PeerpoiseError,
    StorageError,
    TaskError,
    TemporaryFailure,
)


def main() -> None:
    """Entry point: the one place where exceptions become exit codes."""
    stdio.spell()
    out = sys.stdout
    with documents_only() if "--json" in sys.argv else nullcontext():
        code = _command()
    sys.exit(_flushed(out, code))


def _command() -> int:
    try:
        app(prog_name="peerpoise")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    except TaskError as error:
        return _refuse(_with_traceback(error), error.exit_code)
    except PeerpoiseError as error:
        return _refuse(str(error), error.exit_code)
    except Exception as error:
        return _refuse(*_other(error))
    return EXIT_OK


def _flushed(out: TextIO, code: int) -> int:
    """The exit code when all is written. That the reader of a pipe has gone is worth no word: it
    has read enough.
    """
    try:
        out.flush()
        return EXIT_PIPE if code == EXIT_FAILURE and unread(out) else code
    except OSError as error:
        silence(out)
        if error.errno == errno.EPIPE:
            return EXIT_PIPE
        if code != EXIT_OK:
            return code  # it was said already
        print(f"peerpoise: Standard output can't be written: {error.strerror}.", file=sys.stderr)
        return StorageError.exit_code


def _refuse(sentence: str, code: int) -> int:
    with suppress(OSError):  # nobody reads it, or the disk is full
        print(f"peerpoise: {sentence}", file=sys.stderr)
        if "--json" in sys.argv:
            print_json({"error": sentence, "exit_code": code}, indent=None)
    return code


def _with_traceback(error: TaskError) -> str:
    """The sentence, and where the traceback is, if its own code raised."""
    if error.__cause__ is None:
        return str(error)
    file = _traceback("peerpoise-task-")
    return str(error) + (f" The traceback is in {file}." if file else "")


def _other(error: Exception) -> tuple[str, int]:
    """Sentence and exit code of what we did not raise: too little memory, a full disk, a missing
    package, or a bug.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        sentence = (
            "This machine has too little memory for this run; choose a smaller model, "
            "smaller chunks or fewer nodes."
        )
        return sentence, TemporaryFailure.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        sentence = (
            f"{error.filename or 'A file'} can't be written: {error.strerror}; free "
            "space or choose another place."
        )
        return sentence, StorageError.exit_code
    if isinstance(error, RuntimeError) and "home directory" in str(
        error
    ):  # of pathlib, for a path that begins with ~
        return (
            "This user has no home folder: set HOME, or write paths without ~.",
            ConfigurationError.exit_code,
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in (
        "node",
        "peer",
    ):
        sentence = (
            f"The package {error.name} is missing; install peerpoise with all it needs: "
            "pip install peerpoise."
        )
        return sentence, ConfigurationError.exit_code
    if isinstance(error, UnicodeEncodeError):  # names of files, which may be the run's
        characters = ascii(error.object[error.start : error.end])
        sentence = (
            f"The characters {characters} don't exist in {error.encoding}; choose "
            "another name, or LC_ALL=C.UTF-8."
        )
        return sentence, ConfigurationError.exit_code
    return _bug(error), EXIT_BUG


def _bug(error: Exception) -> str:
    """One sentence; the traceback goes to a file, or with PEERPOISE_DEBUG=1 to standard error."""
    if file := _traceback("peerpoise-bug-"):
        return (
            f"This is a bug in peerpoise ({type(error).__name__}); the traceback is in "
            f"{file}, please report it."
        )
    return f"This is a bug in peerpoise ({type(error).__name__}: {error}); please report it."


def _traceback(prefix: str) -> str:
    """The file with the traceback; empty where none can be written, or with PEERPOISE_DEBUG=1,
    which prints it.
    """
    import tempfile
    import traceback

    if os.environ.get("PEERPOISE_DEBUG") == "1":
        traceback.print_exc()
        return ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=prefix, suffix=".txt", delete=False
        ) as file:
            traceback.print_exc(file=file)
    except OSError:
        return ""
    return file.name


if __name__ == "__main__":
    main()
