"""The disk seam: files that are either whole or the old ones, and that no other user can read,
prepare or redirect.

New files are made under random names, exclusively and following no link, and get their mode before
their content. What is private has mode 0600 (folders: 0700) whatever the umask; what is `public`
leaves that to the umask.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from peer.errors import StorageError
from peer.failpoint import failpoint

DRAFT = ".draft-"
"""How files begin that are not finished."""


def atomic_write(
    path: Path, data: bytes | Iterable[bytes | memoryview], point: str = "", *, public: bool = False
) -> None:
    """Writes `path` through a draft: write, fsync, rename, fsync of the folder. Pieces of it are
    asked for as they are written.

    `point` names the failpoints before_<point>_rename and after_<point>_rename.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    draft = path.with_name(DRAFT + secrets.token_hex(8))
    try:
        descriptor = create(draft, public=public)
    except OSError as error:
        raise storage_error(path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines((data,) if isinstance(data, bytes) else data)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint(f"before_{point}_rename")
        draft.replace(path)
        failpoint(f"after_{point}_rename")
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise storage_error(path, error) from None


def create(path: Path, *, public: bool = False) -> int:
    """A descriptor for writing a new file.

    Raises:
        OSError: there is something of that name, or the disk refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666 if public else 0o600)
    if not public:
        os.fchmod(descriptor, 0o600)
    return descriptor


def keep(path: Path, flags: int) -> int:
    """A descriptor of a private file that stays, made if need be; `flags` as in os.open.

    Raises:
        OSError: it is a link, another user's, no regular file, or the disk refuses.
    """
    descriptor = os.open(
        path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
    )
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink > 1:
            raise OSError(errno.EPERM, "it is another user's, a link, or no regular file")
        if stat.S_IMODE(about.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def ensure_dir(folder: Path, *, public: bool = False) -> Path:
    """A folder, made with its parents if need be.

    Raises:
        StorageError: it can't be made; its name is no UTF-8, so that nobody could open the models
            in it; or it is to be private, and others can exchange what is in it.
    """
    whole = str(folder.absolute())
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise StorageError(
            f"The folder {whole!a} has a name that is not UTF-8 text; choose another one."
        ) from None
    try:
        for each in [*reversed(folder.parents), folder]:
            if not each.is_dir():
                each.mkdir(mode=0o777 if public else 0o700, exist_ok=True)
                if not public:
                    each.chmod(0o700)
        text = "" if public else unsafe(folder)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} can't be made: {error.strerror or error}."
        ) from None
    if text:
        raise StorageError(text)
    return folder


def new_dir(folder: Path) -> Path:
    """A folder with nothing in it, readable by its owner only.

    Raises:
        StorageError: it exists and is not empty, can't be made, or others can write to it.
    """
    if any(ensure_dir(folder).iterdir()):
        raise StorageError(
            f"{folder} exists and is not empty; choose another folder or move it away."
        )
    return folder


def unsafe(folder: Path) -> str:
    """Why other users can exchange what is in this folder, and what to do about it; empty: they
    can't.

    Raises:
        OSError: it can't be looked at.
    """
    about = folder.stat()
    if not stat.S_ISDIR(about.st_mode):
        return f"{folder} is no folder; move it away, or choose another."
    if about.st_uid not in (os.geteuid(), 0):
        return (
            f"The folder {folder} belongs to another user, who can replace its content; choose "
            "one of your own."
        )
    if about.st_mode & 0o022:
        return (
            f"Others can write to the folder {folder} and exchange what is in it; run: chmod "
            f"go-w {folder}"
        )
    return ""


def exposed(file: Path) -> str:
    """Why other users can read or exchange this file, and what to do about it; empty: they can't.

    Raises:
        OSError: it can't be looked at.
    """
    if os.name != "posix":
        return ""
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        return f"{file} can be read by others; run: chmod 600 {file}"
    return unsafe(file.parent)


def forget_drafts(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote. Nobody else may be writing there.

    Raises:
        StorageError: the folder refuses.
    """
    try:
        for draft in folder.glob(f"{DRAFT}*"):
            draft.unlink()
    except OSError as error:
        raise storage_error(folder, error) from None


def sync(folder: Path) -> None:
    """Makes renames and deletions in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> StorageError:
    """The sentence for a disk that refuses to write `path`."""
    return StorageError(
        f"{path} can't be written: {error.strerror or error}; free space or check permissions."
    )
