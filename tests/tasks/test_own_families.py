"""Families of questions of somebody's own: two functions, in a process that may only compute."""

from __future__ import annotations

import socket
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from kit.hostile_answers import HOSTILE
from kit.own_families import sums, written
from node.config import NodeConfig, ReasoningSection, TaskSection
from node.data import child, confined, own_families
from node.data.child import Child
from node.data.families import Item
from node.data.own_families import FORGIVEN, GIVE_UP, OwnFamily
from node.data.questions import find, read_questions
from node.experiments import provisioning
from node.hooks import no_op
from peer.errors import ConfigurationError, TaskError

ITEM = Item("What is 3 + 4?", "7")
SAMPLE = "def sample(seed):\n    return {'question': f'{seed}?', 'answer': '7'}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, beside the code."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def own(folder: Path, score: str, above: str = "") -> OwnFamily:
    """A family whose `score` has this body; it is not tried."""
    body = "\n".join(f"    {line}" for line in score.splitlines())
    name = written(folder / "mine.py", f"{above}\n{SAMPLE}\ndef score(item, text):\n{body}\n")
    return OwnFamily(name, name.removeprefix("own:"))


def test_two_functions_are_a_family(tmp_path: Path) -> None:
    family = find(sums(tmp_path))
    items = [family.sample(seed) for seed in range(40)]
    assert items == [family.sample(seed) for seed in range(40)]
    assert len({item.prompt for item in items}) > 20
    item = Item("make 41=", "34+7")
    assert family.scores is not None
    texts = ["34+7", " 8+33\n", "8+34", "41", ""]
    assert family.scores([item] * 5, texts, no_op) == [1.0, 1.0, 0.2, 0.0, 0.0]


def test_its_questions_are_data_like_ours(tmp_path: Path) -> None:
    name = sums(tmp_path)
    train, test = read_questions([name, "sort"])
    assert {*train.columns["family"]} == {name, "sort"}
    assert not {*train.columns["question"]} & {*test.columns["question"]}


def test_without_a_scorer_there_is_one_answer(tmp_path: Path) -> None:
    family = find(written(tmp_path / "plain.py", SAMPLE))
    assert family.scores is None
    assert family.sample(3) == Item("3?", "7")


def test_a_module_is_found_where_python_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "riddles").mkdir()
    written(tmp_path / "riddles" / "easy.py", SAMPLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert find("own:riddles.easy").sample(5).prompt == "5?"
    assert not [name for name in sys.modules if name.startswith("riddles")], "never in this process"


def test_what_lies_beside_a_file_can_be_imported(tmp_path: Path) -> None:
    written(tmp_path / "beside_it.py", "ANSWER = '7'\n")
    code = "from beside_it import ANSWER\ndef sample(seed):\n    return {'question': '?', 'answer': ANSWER}\n"
    assert find(written(tmp_path / "json.py", code)).sample(0).answer == "7"


def test_two_processes_make_the_same_questions(tmp_path: Path) -> None:
    """Also of what has no order of its own."""
    code = "def sample(seed):\n    words = {chr(97 + k) * 3 for k in range(20)}\n"
    code += "    return {'question': ' '.join(words), 'answer': str(hash('x'))}\n"
    family = find(written(tmp_path / "sets.py", code))
    before = family.sample(0)
    child.end_all()
    assert family.sample(0) == before


MISTAKES = {
    "x = 1": "there is no function sample",
    "import nothing_there": r"import raised ModuleNotFoundError: No module named 'nothing_there' \(mine.py, line 1\)",
    "def sample(seed)": r"import raised SyntaxError: expected ':' \(mine.py, line 1\)",
    "raise SystemExit(0)": "import raised SystemExit",
    "def sample(seed): return 7": "sample, given 0, gives something else than",
    "def sample(seed): return {'question': '?', 'answer': 7}": "gives as answer what is no text",
    "def sample(seed): return {'question': '\\ud800', 'answer': '7'}": "half a character",
    "def sample(seed): return {'question': 'a' * 5000, 'answer': '7'}": "no text of 1 to 4096",
    "def sample(seed): 1 / 0": "sample, given 0, raised ZeroDivisionError: division by zero",
    "import random\ndef sample(seed): return {'question': str(random.random()), 'answer': '7'}": "two different",
    f"{SAMPLE}def score(item, text): return float(text) == 7": "score, given '', raised ValueError: .*any text",
    f"{SAMPLE}def score(item, text): return float('nan')": r"gives nan \(float\)",
    f"{SAMPLE}def score(item, text): return 2": r"gives 2.0 \(int\)",
    f"{SAMPLE}def score(item, text): return -0.1": "gives -0.1",
    f"{SAMPLE}def score(item, text): return None": "gives something of type NoneType",
    f"{SAMPLE}def score(item, text): return '1'": "gives something of type str",
    f"{SAMPLE}def score(item, text): return 0.5": "score gives 0.5 for the answer that sample",
    f"{SAMPLE}def score(item, text): return float(eval(text) == 7)": "exec is refused here; no text",
    f"{SAMPLE}def score(item, text): return float(text == open('x').read())": "read and import at the top",
    f"import os\n{SAMPLE}def score(item, text): os._exit(3)": r"score, given '7', ends its process \(3\)",
}


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_is_one_sentence_before_the_first_round(code: str, tmp_path: Path) -> None:
    name = written(tmp_path / "mine.py", code)
    with pytest.raises(TaskError, match=MISTAKES[code]) as caught:
        find(name)
    text = str(caught.value)
    assert text.startswith(f"The family {name!r}: ")
    assert "\n" not in text + caught.value.brief
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own:", "names no module; write own:package.module or own:FILE.py"),
        ("own:a-b", "names no module"),
        ("own:nothing.py", "there is no Python file .*nothing.py"),
        ("own:./nothing", "there is no Python file"),
    ],
)
def test_a_name_of_nothing_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        find(name)


def test_a_secret_of_an_answer_is_in_no_journal(tmp_path: Path) -> None:
    """An error may quote what was asked."""
    name = written(
        tmp_path / "mine.py", f"{SAMPLE}def score(item, text): return int(item['answer'] + 'x')\n"
    )
    with pytest.raises(TaskError, match="'7x'") as caught:
        find(name)
    assert "7x" not in caught.value.brief
    assert "score raised ValueError (mine.py, line 3)" in caught.value.brief


# what a policy says ends no run


def test_a_scorer_that_fails_later_is_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family = own(tmp_path, "if text == 'x': raise KeyError(text)\nreturn float(text == '7')")
    assert family.scores([ITEM] * 4, ["7", "x", "x", "8"]) == [1.0, None, None, 0.0]
    warnings = capfd.readouterr().err
    assert warnings.count("\n") == 1, "once"
    assert "score, given 'x', raised KeyError: 'x' (mine.py, line 6)" in warnings
    assert "Such answers count as wrong" in warnings


def test_what_an_answer_does_to_the_terminal_is_shown_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family = own(tmp_path, "raise ValueError(text)")
    family.scores([ITEM], ["\x1b[2J\u202e"])
    assert capfd.readouterr().err.isascii()


def test_a_scorer_that_hangs_is_killed_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_families, "SECONDS", 600.0)  # longer than this test may take
    family = own(tmp_path, "while text == 'x': pass\nreturn float(text == '7')")
    assert family.scores([ITEM] * 3, ["7", "x", "7"]) == [1.0, None, 1.0], "by CPU time"
    monkeypatch.setattr(own_families, "SECONDS", 1.0)
    family = own(
        tmp_path, "if text == 'x': threading.Event().wait()\nreturn 1.0", "import threading"
    )
    assert family.scores([ITEM] * 3, ["7", "x", "7"]) == [1.0, None, 1.0], "and by the clock"


def test_a_batch_of_answers_that_end_it_costs_few_starts(tmp_path: Path) -> None:
    code = "if text == 'x': os._exit(0)\nreturn 1.0"
    family = own(tmp_path, code, "import os")
    calls: list[int] = []
    scores = family.scores([ITEM] * 20, ["x"] * 19 + ["7"], lambda: calls.append(1))
    assert scores == [None] * 20
    assert len(calls) == 20
    assert family.scores([ITEM] * 2, ["7", "x"]) == [1.0, None], "the next one is asked"
    assert family.scores([ITEM] * 3, ["x", "7", "7"]) == [None] * 3, "but borne less"
    for _ in range(FORGIVEN):
        assert family.scores([ITEM], ["7"]) == [1.0]
    assert family.scores([ITEM] * 3, ["x", "7", "x"]) == [None, 1.0, None]
    assert GIVE_UP < 19


def test_a_node_that_stops_in_the_middle_of_a_batch_leaves_nothing(tmp_path: Path) -> None:
    """As a daemon does, in the middle of a step."""
    family, texts = own(tmp_path, "return 1.0"), ["7"] * 1000
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        family.scores([ITEM] * 1000, texts, stop)
    assert family.child.pid is None
    assert family.scores([ITEM], ["7"]) == [1.0], caught.value


def test_who_ends_it_costs_no_other_answer_its_score(tmp_path: Path) -> None:
    family = own(tmp_path, "if text == 'x': os._exit(0)\nreturn float(len(text) > 1)", "import os")
    texts = ["7" * 4000] * 40
    texts[5] = texts[6] = texts[39] = "x"
    expected = [None if text == "x" else 1.0 for text in texts]
    assert family.scores([ITEM] * 40, texts) == expected


def test_a_process_that_can_not_be_started_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    with pytest.raises(TaskError, match=r"import has no process, as none can be started \(No such"):
        find(written(tmp_path / "mine.py", SAMPLE))


def test_what_it_prints_is_no_answer(tmp_path: Path) -> None:
    family = own(tmp_path, "print('{\"value\": 1.0}')\nreturn 0.0")
    assert family.scores([ITEM], ["x"]) == [0.0]


SCORERS = {
    "compares": ("return float(text == '7')", ""),
    "evaluates": ("return float(eval(text) == 7)", ""),
    "runs": ("exec(text)\nreturn 0.0", ""),
    "reads literals": ("return float(ast.literal_eval(text) == 7)", "import ast"),
    "opens": ("open(text[:40], 'w').write('x')\nreturn 0.0", ""),
    "takes numbers": (
        "return float(text.isascii() and Decimal(text) == 7)",
        "from decimal import Decimal",
    ),
    "nests": ("return float(json.loads(text) == 7)", "import json"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_wrong_whatever_the_scorer_does(text: str, here: Path) -> None:
    """In time, without a trace, and without memory of ours."""
    for body, above in SCORERS.values():
        family = own(here.parent, body, above)
        family.child.ask(["import"], 60)
        tracemalloc.start()
        before = time.monotonic()
        scores = family.scores([ITEM] * 2, [text, "7"])
        assert time.monotonic() - before < 2 * own_families.SECONDS
        assert tracemalloc.get_traced_memory()[1] < 9 * len(text) + (1 << 20)
        tracemalloc.stop()
        assert scores[0] in (0.0, None)
        assert not list(here.iterdir())
        family.child.end()


# what the process may do


def reaching(monkeypatch: pytest.MonkeyPatch, *parts: str, before: str = "") -> None:
    """Families' processes without these parts of their confinement, and with this code before it."""
    program = before
    program += (
        f"import runpy, sys\nown = runpy.run_path({confined.__file__!r})['main'].__globals__\n"
    )
    program += "".join(f"own[{part!r}] = lambda *_: None\n" for part in parts)
    program += "own['main'](sys.argv[1])"
    kept = Child.__init__

    def without(self: Child, *arguments: str, start_s: float) -> None:
        kept(self, "-P", "-c", program, arguments[-1], start_s=start_s)

    monkeypatch.setattr(Child, "__init__", without)


def test_power_of_the_confinement(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it an answer is run, and writes its file."""
    reaching(monkeypatch, "confine")
    family = own(here.parent, SCORERS["evaluates"][0])
    family.scores([ITEM], [HOSTILE["code"]])
    assert (here / "canary").exists()


CONNECTS = "socket.create_connection(('127.0.0.1', int(text)), 1)\nreturn 1.0"


@pytest.mark.parametrize(
    ("parts", "connects"),
    [((), False), (("refuse",), False), (("limit",), False), (("confine", "limit"), True)],
    ids=["as it is", "by the limit alone", "by the hook alone", "power check"],
)
def test_it_reaches_no_network(
    parts: tuple[str, ...], connects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaching(monkeypatch, *parts)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        family = own(tmp_path, CONNECTS, "import socket")
        assert family.scores([ITEM], [str(port)]) == [1.0 if connects else None]


REACHES = {
    "a file": "open('canary', 'w')",
    "a folder": "os.mkdir('canary')",
    "another file": "os.remove('keep')",
    "a shorter file": "os.truncate('keep', 0)",
    "a process": "os.fork()",
    "a program": "os.execv('/bin/touch', ['touch', 'canary'])",
    "a signal": "os.kill(os.getppid(), 15)",
    "its limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "a library": "ctypes.CDLL(None)",
    "memory": "b'x' * (3 << 30)",
}


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_it_may_only_compute(reach: str, here: Path) -> None:
    (here / "keep").write_text("kept", encoding="utf-8")
    family = own(here.parent, f"{reach}\nreturn 1.0", "import ctypes, os, resource")
    if reach.startswith("b'x'") and not sys.platform.startswith("linux"):
        pytest.skip("memory has a limit on Linux")
    assert family.scores([ITEM], ["7"]) == [None]
    assert [file.name for file in here.iterdir()] == ["keep"]
    assert (here / "keep").read_text(encoding="utf-8") == "kept"


LIMITS = ["RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_NPROC"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS knows no limit of memory")
@pytest.mark.parametrize("name", LIMITS)
def test_where_a_limit_can_not_be_set_no_answer_is_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may refuse it."""
    before = "import resource\nset_it = resource.setrlimit\n"
    before += (
        f"def refuse(number, pair):\n    if number == resource.{name}: raise OSError(1, 'no')\n"
    )
    before += "    set_it(number, pair)\nresource.setrlimit = refuse\n"
    reaching(monkeypatch, before=before)
    with pytest.raises(
        TaskError, match=rf"refuses to limit .* \({name}: .*no\); allow setr"
    ) as caught:
        own(tmp_path, "return 1.0").try_out()
    assert "\n" not in str(caught.value)
    assert own(tmp_path, "return 1.0").scores([ITEM], ["7"]) == [None]


def test_a_lower_limit_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))\n"
    reaching(monkeypatch, before=lower)
    code = "return float(resource.getrlimit(resource.RLIMIT_AS) == (700 << 20, 700 << 20))"
    assert own(tmp_path, code, "import resource").scores([ITEM], ["7"]) == [1.0]


def test_it_gets_no_secrets_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_SOMEBODY", "x")
    family = own(tmp_path, "return float('TOKEN_OF_SOMEBODY' in os.environ)", "import os")
    assert family.scores([ITEM], ["7"]) == [0.0]


# whose code runs


def section(*names: str) -> TaskSection:
    return TaskSection(name="reasoning", reasoning=ReasoningSection(families=names))


def test_a_host_runs_no_family_that_its_file_does_not_name() -> None:
    node = NodeConfig(name="a", identity=provisioning.OWN, tasks=("own:mine",))
    node.check_task(section("sort", "own:mine"))
    with pytest.raises(
        ConfigurationError, match=r'the family \'own:evil\'.*tasks = \["own:mine", "own:evil"\]'
    ):
        node.check_task(section("own:mine", "own:evil"))


def test_a_host_runs_no_scorer_that_its_file_does_not_name() -> None:
    node = NodeConfig(name="a", identity=provisioning.OWN)
    task = TaskSection(name="reasoning", reasoning=ReasoningSection(scorer="own:evil"))
    with pytest.raises(
        ConfigurationError, match=r"the scorer 'own:evil'.*tasks = \[\"own:evil\"\]"
    ):
        node.check_task(task)
    node.model_copy(update={"tasks": ("own:evil",)}).check_task(task)


def test_files_keep_their_names_in_every_folder(here: Path) -> None:
    given = ReasoningSection(
        families=("sort", "own:mine.py", "own:a.b"),
        reward_scale={"own:mine.py": (2.0, 0.0)},
        scorer="own:judge.py",
    )
    whole = own_families.absolute(given)
    assert whole.families == ("sort", f"own:{here}/mine.py", "own:a.b")
    assert whole.scale(f"own:{here}/mine.py") == (2.0, 0.0)
    assert whole.scorer == f"own:{here}/judge.py"


def test_a_scorer_that_hangs_now_and_then_costs_three_hangs_a_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And its owner is told of each kind of failure."""
    family = own(
        tmp_path,
        "if text == 'x': os._exit(0)\nif text == 'y': raise ValueError\nreturn float(text == '7')",
        "import os",
    )
    scores = family.scores([ITEM] * 40, ["7", "x", "y", "7"] * 10)
    assert scores == [1.0, None, None, 1.0] * 2 + [1.0] + [None] * 31
    warned = capfd.readouterr().err
    assert "ends its process (0)" in warned
    assert "raised ValueError" in warned
    assert warned.count("warning: ") == 2


def test_a_scorer_that_takes_any_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="score gives 1 for any text"):
        find(written(tmp_path / "mine.py", f"{SAMPLE}\ndef score(item, text):\n    return 1.0\n"))
