"""Everything peerpoise raises on purpose.

    PeerpoiseError                     one sentence that says what to do, and an exit code
    ├── ConfigurationError   78        a file, option or combination of them is wrong
    │   └── TaskError        78        an own task raised, or gave what is no task's
    ├── DataError            66        a data set is missing, truncated or not what the task expects
    ├── StorageError         73        a directory or disk refuses; nothing was lost
    ├── LedgerError          73        the privacy ledger can't vouch for what was spent
    ├── IdentityError        77        our key, certificate or roster can't be used
    ├── BudgetSpent           3        the privacy budget is used up (an end by policy, not a fault)
    ├── Diverged              4        this node's parameters are not finite, or beyond the limits
    ├── PeersUnavailable     69        too few neighbors to start
    ├── TemporaryFailure     75        try again later (port taken, lock held, server not there)
    └── RemoteError                    a neighbor's fault; costs that neighbor's edge, never our run
        ├── Unreachable                no connection, or it broke
        ├── Malformed                  bytes that are no message of ours
        └── Refused                    the neighbor's answer was a code other than OK

A bug of ours is any other exception: exit code 70. Usage errors (2) are the command line's own.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_BROKEN = 5
"""`audit`: an attack refuted what a run promises."""
EXIT_BUG = 70
EXIT_PIPE = 141
"""128 + SIGPIPE, as of a program that the signal ends."""


class PeerpoiseError(Exception):
    """Base of all: `str(error)` is one sentence for the person in front of the machine."""

    exit_code = EXIT_FAILURE

    @property
    def brief(self) -> str:
        """The sentence as journals keep it."""
        return str(self)


class ConfigurationError(PeerpoiseError, ValueError):
    exit_code = 78


class TaskError(ConfigurationError):
    """A mistake in the code of an own task. `str(error)` has what it raised, whose words may quote
    private data and are for the terminal of the data's owner; `brief` has only its kind and
    place."""

    def __init__(self, message: str, brief: str = "") -> None:
        super().__init__(message)
        self._brief = brief or message

    @property
    def brief(self) -> str:
        return self._brief


class DataError(PeerpoiseError, ValueError):
    exit_code = 66


class StorageError(PeerpoiseError):
    exit_code = 73


class LedgerError(PeerpoiseError):
    exit_code = 73


class IdentityError(PeerpoiseError):
    exit_code = 77


class BudgetSpent(PeerpoiseError):
    exit_code = 3


class Diverged(PeerpoiseError):
    exit_code = 4

    def __init__(
        self, why: str = "its own parameters are not finite, or beyond limits.rms"
    ) -> None:
        super().__init__(
            f"This node has diverged: {why}. "
            "The last checkpoint stands; start a new run with a smaller algorithm.lr, or a larger "
            "limits.rms if they are rightly so large."
        )


class PeersUnavailable(PeerpoiseError):
    exit_code = 69


class TemporaryFailure(PeerpoiseError):
    exit_code = 75


class RemoteError(PeerpoiseError):
    """A neighbor's fault. `code` is a value of the wire's Code enum, as an int."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(RemoteError):
    pass


class Malformed(RemoteError):
    pass


class Refused(RemoteError):
    pass


def first_line(error: BaseException | None) -> str:
    """What a library's error says, or else its kind, to stand within a sentence of ours."""
    try:
        text = str(error).strip()
    except Exception:  # whatever an error's own code raises
        text = ""
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
