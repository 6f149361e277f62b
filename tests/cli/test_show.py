"""What comes with peerpoise beside its code is there without a checkout, and examples go by name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from kit import LONG, ROOT
from kit.command import Call
from node.config import shipped


def test_the_list_names_what_there_is(peerpoise: Call) -> None:
    listed = json.loads(peerpoise("show", "--json").out)
    assert {"quickstart.toml", "own-task.md", "peerpoise.service", "alerts.yml"} < set(listed)
    assert all(Path(each["path"]).is_file() for each in listed.values())
    assert listed["deployment.md"]["title"] == "On real hosts"
    lines = peerpoise("show").out.splitlines()
    assert len(lines) == len(listed)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", ["quickstart", "quickstart.toml", "peerpoise.service"])
def test_a_file_is_printed_as_it_is(peerpoise: Call, name: str) -> None:
    assert peerpoise("show", name).out == shipped.find(name).read_text(encoding="utf-8")


def test_what_there_is_not(peerpoise: Call) -> None:
    ended = peerpoise("show", "quikstart")
    assert ended.code == 78
    assert "peerpoise show lists what there is" in ended.err


def test_an_example_goes_by_its_name_wherever_one_is(peerpoise: Call) -> None:
    by_name = json.loads(peerpoise("plan", "quickstart", "--json").out)
    file = str(ROOT / "deploy" / "examples" / "quickstart.toml")
    assert by_name == json.loads(peerpoise("plan", file, "--json").out)
    ended = peerpoise("plan", "quikstart")
    assert ended.code == 78
    assert "or take an example's name (peerpoise show)" in ended.err


def test_a_file_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.example(Path("quickstart")) == shipped.find("quickstart")
    Path("quickstart").write_text("", encoding="utf-8")
    assert shipped.example(Path("quickstart")) == Path("quickstart")
    assert shipped.example(Path("x/quickstart")) == Path("x/quickstart")


def test_a_wheel_has_them() -> None:
    """What pyproject.toml takes along is what `node.config.shipped` looks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    taken = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    needed = {path.relative_to(ROOT) for path in shipped.files().values()}
    needed |= {path.relative_to(ROOT) for path in shipped.templates().values()}
    for path in needed:
        [source] = [it for it in (path, *path.parents) if str(it) in taken]
        assert taken[str(source)] == f"peerpoise_share/{source}"


@pytest.mark.parametrize("kind", list(shipped.templates()))
def test_a_start_of_each_kind_can_be_run(
    peerpoise: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"cd {kind} && peerpoise up run.toml" in peerpoise("init", kind).out
    monkeypatch.chdir(kind)
    assert peerpoise("config", "check", "run.toml").code == 0
    if kind != "language" or LONG:  # which trains a model of a million parameters
        short = ("--set", "train.rounds=2", "--folder", "run", "--json")
        ended = peerpoise("simulate", "run.toml", *short)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["headline"]
    monkeypatch.chdir(tmp_path)
    ended = peerpoise("init", kind)
    assert "exists and is not empty" in ended.err
    assert ended.code != 0


def test_a_start_of_no_kind(peerpoise: Call) -> None:
    ended = peerpoise("init", "sounds")
    assert ended.code == 78
    assert "choose one of images, language, own, table" in ended.err
