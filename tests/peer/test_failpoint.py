from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from peer import failpoint


def test_off_by_default() -> None:
    assert not failpoint._ARMED
    failpoint.failpoint("anything")


def test_the_environment_arms_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from peer.failpoint import arm, failpoint; failpoint('a'); print('alive', flush=True); {}; failpoint('a')"
    monkeypatch.setenv(failpoint.VARIABLE, "a=kill")
    for then, ends in (("pass", 0), ("arm()", -signal.SIGKILL)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(then)], capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (ends, b"alive\n")


@pytest.mark.parametrize(("action", "code"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_fires_once_at_its_hit(monkeypatch: pytest.MonkeyPatch, action: str, code: int) -> None:
    monkeypatch.setattr(failpoint, "_ARMED", failpoint._parse(f"a={action}@2;b=kill@9"))
    failpoint.failpoint("a")
    failpoint.failpoint("other")
    with pytest.raises(OSError, match=r".") as caught:
        failpoint.failpoint("a")
    assert caught.value.errno == code
    failpoint.failpoint("a")


def test_a_typing_error_is_not_silently_off() -> None:
    with pytest.raises(ValueError, match="explode"):
        failpoint._parse("a=explode")
