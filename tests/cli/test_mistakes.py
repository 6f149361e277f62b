"""Every mistake of a user: one sentence that names the culprit, the documented exit code, no
traceback.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import node.config
from kit.command import Call, Result
from node.cli.main import main
from peer import errors

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def one_sentence(result: Result, code: int, *parts: str) -> None:
    assert result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("peerpoise: ")
    assert all(part in lines[0] for part in parts), lines[0]
    assert "Traceback" not in result.err + result.out


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["privacy.epsilno=3"], "privacy.epsilno: unknown key"),
        (["tarin.rounds=3"], "tarin: unknown key"),
        (["train.rounds=many"], "train.rounds"),
        (["train.rounds=0"], "train.rounds"),
        (["task.features.age.scale=3"], "task.features.age: 'kind' is missing"),
        (["task.features.age.kind=numbers"], "'kind' 'numbers' is unknown; choose among 'number'"),
        (["privacy.sigma=2.0"], "not both"),
        (["privacy.epsilon="], "either epsilon (a target) or sigma"),
        (["privacy.mode=loud"], "privacy.mode"),
        (["privacy.delta=1"], "privacy.delta"),
        (["privacy.rate=0"], "privacy.rate"),
        (["privacy.epsilon=nan"], "privacy.epsilon"),
        (["experiment.alpha=-1"], "experiment.alpha"),
        (["train"], "section.key=value"),
        (["=3"], "section.key=value"),
        (["train..rounds=3"], "section.key=value"),
        (["train.rounds.x=3"], "train.rounds"),
        (["algorithm.name=sgdx"], "Unknown algorithm 'sgdx'"),
        (["algorithm.lrr=3"], "algorithm.lrr: unknown key (dpdl); the nearest is lr"),
        (["algorithm.lr=-1"], "algorithm.lr"),
        (["algorithm.name=deca", "sync.mode=async"], 'set "round" or "quorum"'),
        (["topology.kind=moon"], "Unknown topology 'moon'"),
        (["topology.kind=hypercube"], "take 2 or 4"),
        (["topology.kind=grid"], "can't be laid out"),
        (["topology.kind=erdos-renyi", "topology.p=0.001"], "None of 1000"),
        (["topology.p=0"], "topology.p"),
        (["topology.kind=edges"], "needs edges"),
        (["topology.kind=edges", "topology.file=none.txt"], "none.txt can't be read"),
        (["topology.kind=edges", 'topology.edges=[["n0","n1"]]'], "not connected"),
        (["topology.kind=edges", 'topology.edges=[["n0","n1",1,2]]'], "topology.edges"),
        (["topology.file=graph.txt", "topology.edges=[]"], "graph.txt can't be read"),
        (['topology.edges=[["n0","n1"]]'], 'belong to kind = "edges"'),
        (["task.name=poetry"], "Unknown task 'poetry'"),
        (["task.data=imagenet"], "Unknown data set 'imagenet'"),
        (["task.model=vit"], "vit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings(peerpoise: Call, experiment: Path, settings: list[str], part: str) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    one_sentence(peerpoise("config", "check", experiment, *options), 78, part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[privacy\n", "not valid TOML"),
        ("[privacy]\nepsilon = 8\nepsilon = 9\n", "not valid TOML"),
        ("[run]\nname = 'x'\n", "privacy"),
        ("[privacy]\nepsilon = 'eight'\n", "privacy.epsilon"),
        ("privacy = 3\n", "privacy"),
        ("\udcff", "not valid TOML"),
    ],
)
@pytest.mark.parametrize("command", ["up", "simulate", "config show", "pack"])
def test_files(peerpoise: Call, tmp_path: Path, command: str, text: str, part: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, errors="surrogateescape")
    extra = ["--host", "a=h:1", "--out", str(tmp_path / "out")] if command == "pack" else []
    one_sentence(peerpoise(*command.split(), file, *extra), 78, part, str(file))


@pytest.mark.parametrize("key", ["run.federation", "task.path", "task.label", "a\udce9.name"])
@pytest.mark.parametrize("command", ["up", "simulate", "config show", "config check", "plan"])
def test_settings_that_are_no_utf_8(
    peerpoise: Call, experiment: Path, command: str, key: str
) -> None:
    """As bytes of a command line come from Python."""
    said = peerpoise(*command.split(), experiment, "--set", f"{key}=a\udce9")
    one_sentence(said, 78, "is not UTF-8 text")


def test_a_variable_that_is_no_utf_8(
    peerpoise: Call, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERPOISE_TASK__LABEL", "a\udce9")
    one_sentence(peerpoise("simulate", experiment), 78, "$PEERPOISE_TASK__LABEL")


def test_a_folder_that_is_no_utf_8(
    peerpoise: Call, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained whose model could not be opened."""
    folder = tmp_path / "a\udce9"
    for command in ("up", "simulate"):
        said = peerpoise(command, experiment, "--folder", folder)
        one_sentence(said, 73, "not UTF-8 text; choose another")
    assert not folder.exists()
    folder.mkdir()
    monkeypatch.chdir(folder)
    one_sentence(peerpoise("up", experiment), 73, "not UTF-8 text; choose another")
    named = folder / "run.toml"
    text = experiment.read_text(encoding="utf-8")
    named.write_text(text + '[validation]\npath = "validation.csv"\n')
    one_sentence(peerpoise("config", "check", named), 78, "validation.path", "not UTF-8 text")


@pytest.mark.parametrize("command", ["up", "simulate", "config show", "config check"])
def test_no_such_file(peerpoise: Call, tmp_path: Path, command: str) -> None:
    one_sentence(peerpoise(*command.split(), tmp_path / "none.toml"), 78, "no file")
    one_sentence(peerpoise(*command.split(), tmp_path), 78, "is a folder")


@pytest.mark.parametrize(
    ("hosts", "part"),
    [
        (["a"], "write a=HOST:PORT, or say how it is found"),
        (["a="], "NAME=VALUE"),
        (["=h:1"], "NAME=VALUE"),
        (["a=10.0.0.1"], "not an address"),
        (["a=10.0.0.1:x"], "no port"),
        (["a=10.0.0.1:70000"], "no port"),
        (["a=10.0.0.1:0"], "need a port they can dial"),
        (["a=::1:7443"], "[v6]:port"),
        (["a=h:1", "a=h:2"], "twice"),
        (["../a=h:1"], "can't name"),
        (["federation=h:1"], "can't name"),
        (["a b=h:1"], "can't name"),
    ],
)
def test_hosts(
    peerpoise: Call, experiment: Path, tmp_path: Path, hosts: list[str], part: str
) -> None:
    options = [word for host in hosts for word in ("--host", host)]
    one_sentence(peerpoise("pack", experiment, *options, "--out", tmp_path / "out"), 78, part)
    assert not (tmp_path / "out").exists(), "a refused pack leaves nothing behind"


def test_own_data_needs_names(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    pack = ("pack", experiment, "--host", "a=h:1", "--host", "b=h:2", "--out", tmp_path / "out")
    one_sentence(peerpoise(*pack, "--set", "task.data=own"), 78, "--data a=NAME:PATH")
    one_sentence(peerpoise(*pack, "--data", "a=ward:x.npz"), 78, "task.data")
    one_sentence(
        peerpoise(*pack, "--set", "task.data=own", "--data", "c=ward:x.npz"),
        78,
        "there is no --host c",
    )


@pytest.mark.parametrize(
    "name", ["../../etc", "ward b/7", "", ".hidden", "a$b", "über", "x" * 65, "a\nb", "-rf"]
)
def test_a_name_that_run_would_refuse_is_refused_by_pack(
    peerpoise: Call, experiment: Path, tmp_path: Path, name: str
) -> None:
    call = (
        "pack",
        experiment,
        "--set",
        "task.data=own",
        "--host",
        "a=h:1",
        "--out",
        tmp_path / "out",
    )
    one_sentence(
        peerpoise(*call, "--data", f"a={name}:x.npz"),
        78,
        "letters, digits, dots, dashes or underscores",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["task.name=nowhere_at_all:make"], "No module named 'nowhere_at_all'"),
        (["task.name=mine.py:make"], "names a file of this machine"),
        (["task.name=/srv/mine.py:make"], "names a file of this machine"),
        (["task.reasoning.families=['own:mine.py']"], "is a file of this machine"),
        (["task.name=no-such-task"], "Unknown task"),
        (["task.name=math:nothing"], "math has no function 'nothing'"),
        (["task.model=resnet50"], "Unknown model 'resnet50'"),
        (["validation.path=/nowhere/q.npz"], "q.npz"),
    ],
)
def test_what_is_known_without_the_hosts_data_is_said_by_pack(
    peerpoise: Call, experiment: Path, tmp_path: Path, settings: list[str], part: str
) -> None:
    changes = [word for each in ("task.data=own", *settings) for word in ("--set", each)]
    call = (
        "pack",
        experiment,
        *changes,
        "--host",
        "a=h:1",
        "--data",
        "a=ward:x.npz",
        "--out",
        tmp_path / "out",
    )
    result = peerpoise(*call)
    assert result.code in (66, 78)
    one_sentence(result, result.code, part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["up", "simulate"])
def test_own_data_is_for_real_hosts(
    peerpoise: Call, experiment: Path, tmp_path: Path, command: str
) -> None:
    call = (command, experiment, "--set", "task.data=own", "--folder", tmp_path / "run")
    one_sentence(peerpoise(*call), 78, "peerpoise pack")


def test_centralized_is_no_protocol(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    wanted = ("--set", "algorithm.name=centralized")
    one_sentence(
        peerpoise("up", experiment, *wanted, "--folder", tmp_path / "run"), 78, "peerpoise simulate"
    )
    call = ("pack", experiment, *wanted, "--host", "a=h:1", "--out", tmp_path / "out")
    one_sentence(peerpoise(*call), 78, "peerpoise simulate")


@pytest.mark.parametrize("command", ["up", "simulate"])
def test_a_run_folder_is_never_overwritten(
    peerpoise: Call, experiment: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "kept").write_text("")
    one_sentence(peerpoise(command, experiment, "--folder", tmp_path), 73, "not empty")
    one_sentence(
        peerpoise(command, experiment, "--folder", tmp_path / "kept" / "run"), 73, "can't be made"
    )


def test_models(peerpoise: Call, tmp_path: Path) -> None:
    one_sentence(peerpoise("eval", tmp_path / "none"), 66, "no run folder")
    one_sentence(peerpoise("eval", tmp_path), 66, "no model")
    one_sentence(
        peerpoise("export", tmp_path, "--node", "a", "--out", tmp_path / "x"), 66, "no model"
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    one_sentence(
        peerpoise("export", tmp_path, "--out", tmp_path / "x"), 66, "no model of peerpoise"
    )
    both = peerpoise("export", tmp_path, "--node", "a", "--average", "--out", tmp_path / "x")
    one_sentence(both, 78, "either --node or --average")


def test_authority(peerpoise: Call, tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    one_sentence(peerpoise("ca", "issue", folder, "--out", tmp_path / "a"), 77, "ca.key")
    assert peerpoise("ca", "create", folder).code == 0
    one_sentence(peerpoise("ca", "create", folder), 73, "not empty")
    one_sentence(peerpoise("ca", "show", folder / "ca.key"), 77, "not a certificate")
    request = ("--request", folder / "ca.pem")
    one_sentence(
        peerpoise("ca", "issue", folder, "--out", tmp_path / "a", *request),
        77,
        "certificate request",
    )
    one_sentence(
        peerpoise("ca", "issue", folder, "--out", tmp_path / "a", "--request", tmp_path / "x"),
        66,
        "read",
    )
    (folder / "ca.key").chmod(0o644)
    one_sentence(peerpoise("ca", "issue", folder, "--out", tmp_path / "a"), 77, "chmod 600")


def packed(peerpoise: Call, experiment: Path, tmp_path: Path) -> Path:
    out = tmp_path / "packed"
    hosts = (
        "--host",
        "a=127.0.0.1:7443",
        "--host",
        "b=127.0.0.1:7444",
        "--host",
        "c=127.0.0.1:7445",
    )
    assert peerpoise("pack", experiment, *hosts, "--out", out).code == 0
    return out / "a"


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(home: Path) -> None:
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("spoil", "code", "part"),
    [
        (lambda home: (home / "node.key").unlink(), 77, "node.key"),
        (lambda home: (home / "node.pem").write_text("x"), 77, "not a certificate"),
        (
            lambda home: (home / "node.pem").write_bytes((home / "../b/node.pem").read_bytes()),
            77,
            "another key",
        ),
        (lambda home: (home / "roster.json").unlink(), 78, "roster"),
        (_edit("run.toml", "rounds = 2", "rounds = 'x'"), 78, "train.rounds"),
        (_edit("run.toml", "federation = ", "federation = 'x' #"), 78, "run.federation"),
        (_edit("node.toml", "[compute]", "[compute]\ngpus = 3"), 78, "compute.gpus: unknown key"),
        (_edit("node.toml", "0.0.0.0:7443", "nowhere"), 78, "not an address"),
        (lambda home: (home / "rows.npy").unlink(), 66, "rows.npy"),
        (lambda home: (home / "rows.npy").write_bytes(b"x"), 66, "rows.npy"),
    ],
    ids=[
        "no-key",
        "no-certificate",
        "other-certificate",
        "no-roster",
        "run-type",
        "federation",
        "node-unknown-key",
        "listen",
        "no-rows",
        "bad-rows",
    ],
)
def test_run(
    peerpoise: Call,
    experiment: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    code: int,
    part: str,
) -> None:
    home = packed(peerpoise, experiment, tmp_path)
    spoil(home)
    one_sentence(peerpoise("run", "--config", home / "node.toml"), code, part)


def test_no_node_file(peerpoise: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PEERPOISE_CONFIG", raising=False)
    one_sentence(peerpoise("run"), 78, "--config")
    monkeypatch.setenv("PEERPOISE_CONFIG", str(tmp_path / "elsewhere.toml"))
    one_sentence(peerpoise("run"), 78, "elsewhere.toml")


def test_json_errors_are_objects(peerpoise: Call, tmp_path: Path) -> None:
    result = peerpoise("config", "check", tmp_path / "none.toml", "--json")
    assert result.code == 78
    assert json.loads(result.out) == {
        "error": result.err.strip().removeprefix("peerpoise: "),
        "exit_code": 78,
    }


@pytest.mark.parametrize(
    "words", [["nonsense"], ["up"], ["up", "x.toml", "--nonsense"], ["config", "schema", "moon"]]
)
def test_usage(peerpoise: Call, words: list[str]) -> None:
    result = peerpoise(*words)
    assert result.code == 2
    assert "Usage: peerpoise" in result.err


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(node.config, "load", fail)


@pytest.mark.usefixtures("broken")
def test_a_bug_is_one_sentence_and_a_file(
    peerpoise: Call, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEERPOISE_DEBUG", raising=False)
    result = peerpoise("config", "check", experiment)
    one_sentence(result, 70, "bug", "KeyError")
    found = re.search(r"the traceback is in (\S+),", result.err)
    assert found
    file = Path(found[1])
    assert "KeyError: 'a bug'" in file.read_text(encoding="utf-8")
    file.unlink()
    monkeypatch.setenv("PEERPOISE_DEBUG", "1")
    assert "Traceback" in peerpoise("config", "check", experiment).err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, experiment: Path) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(node.config, "load", interrupt)
    monkeypatch.setattr(sys, "argv", ["peerpoise", "config", "check", str(experiment)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130


def test_every_exit_code_is_documented() -> None:
    page = PAGE.read_text()
    public = vars(errors)
    kinds = [
        kind
        for kind in public.values()
        if isinstance(kind, type) and issubclass(kind, errors.PeerpoiseError)
    ]
    codes = {kind.exit_code for kind in kinds} | {
        value for name, value in public.items() if name.startswith("EXIT_")
    }
    assert len(codes) > 8
    assert [code for code in sorted(codes) if f"\n| {code} |" not in page] == []


@pytest.mark.usefixtures("real_starts")
def test_the_process_itself(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "config",
        "check",
        str(tmp_path / "none.toml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.count("\n") == 1
