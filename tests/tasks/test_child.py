"""Programs in processes of their own, asked in lines of JSON."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from node.data.child import Child, ChildError


def child_of(program: str, **options: float) -> Child:
    code = f"import os, sys, time\nfor line in sys.stdin:\n    {program}\n"
    return Child("-c", code, **options)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("time.sleep(60)", None),
        ("print('1', end='', flush=True); time.sleep(60)", None),
        ("print('x' * (1 << 21), flush=True)", None),
        ("print('[' * 100_000, flush=True)", None),
        ("print('1\\n2', flush=True)", None),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
    ],
    ids=["late", "half a line", "too long", "nested", "two lines", "an end", "killed"],
)
def test_a_child_without_an_answer_is_ended(program: str, code: int | None) -> None:
    started = child_of(program)
    before = time.monotonic()
    with pytest.raises(ChildError) as caught:
        started.ask(1, 1.0)
    assert time.monotonic() - before < 10
    assert caught.value.code == code
    assert started.pid is None


def test_a_child_that_reads_nothing_holds_nobody_up() -> None:
    with pytest.raises(ChildError):
        Child("-c", "import time; time.sleep(60)").ask("x" * 1_000_000, 1.0)


def test_a_child_is_started_again_and_not_asked_what_was_for_another() -> None:
    echo = child_of("print(line, end='', flush=True)")
    assert echo.ask({"text": "\ud800\x00"}, 60) == {"text": "\ud800\x00"}
    pid = echo.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildError):
        echo.ask(1, 60)
    assert echo.ask(2, 60) == 2


def test_questions_are_asked_at_once_and_answered_one_by_one() -> None:
    """It reads all of them before it answers the first."""
    program = "lines = [line, next(sys.stdin), next(sys.stdin)]\n"
    program += "    for each in lines: print(each, end='', flush=True)"
    assert list(child_of(program).ask_all(["a", 2, None], 60)) == ["a", 2, None]


def test_each_answer_has_a_time_of_its_own() -> None:
    program = "time.sleep(60 if line == '6\\n' else 0.5); print(line, end='', flush=True)"
    answers = child_of(program, start_s=60).ask_all([*range(7)], 2.0)
    assert [next(answers) for _ in range(6)] == [*range(6)]
    with pytest.raises(ChildError):
        next(answers)


def test_what_a_child_said_before_its_end_counts() -> None:
    """However much it had not read yet."""
    program = "os._exit(3) if line[1] == '5' else print(line, end='', flush=True)"
    texts = [str(k) * 30_000 for k in range(9)]
    answers = child_of(program).ask_all(texts, 60)
    assert [next(answers) for _ in range(5)] == texts[:5]
    with pytest.raises(ChildError) as caught:
        next(answers)
    assert caught.value.code == 3


def test_a_child_that_is_asked_no_further_is_ended() -> None:
    started = child_of("print(line, end='', flush=True)")
    answers = started.ask_all([1, 2], 60)
    assert next(answers) == 1
    answers.close()
    assert started.pid is None
    assert started.ask(3, 60) == 3


def test_a_child_that_can_not_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    with pytest.raises(ChildError) as caught:
        child_of("pass").ask(1, 60)
    assert caught.value.start == "No such file or directory"


def test_a_child_gets_no_secrets_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_SOMEBODY", "x")
    names = child_of("print(__import__('json').dumps(list(os.environ)), flush=True)").ask(1, 60)
    assert "TOKEN_OF_SOMEBODY" not in names
    assert "PATH" in names


def test_ctrl_c_is_for_the_parent_only() -> None:
    """A terminal sends it to the whole group of processes."""
    assert child_of("print(os.getpgid(0), flush=True)").ask(1, 60) != os.getpgid(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="waits for a stranger's process")
@pytest.mark.parametrize("end", ["", "import os; os.kill(os.getpid(), 9)\n"], ids=["ends", "dies"])
def test_all_of_them_end_with_this_process(end: str) -> None:
    """Also where nobody is left to end them."""
    code = "from node.data.child import Child\n"
    code += "echo = Child('-c', 'import os, sys; [print(os.getpid(), flush=True) for _ in sys.stdin]')\n"
    code += "print(echo.ask(1, 60), flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, check=False)
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int(done.stdout))
        assert select.select([process], [], [], 30)[0]
        os.close(process)
