"""Where a value comes from: --set over environment over files over defaults."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kit.command import Call
from node.config import ExperimentConfig, NodeConfig, flatten, load, origins, write
from peer.errors import ConfigurationError

TEXT = "[privacy]\nepsilon = 8\nrate = 0.25\n[train]\nrounds = 7\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    return path


def test_precedence(file: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.toml"
    later.write_text("[train]\nrounds = 8\nseed = 3\n")
    environ = {
        "PEERPOISE_TRAIN__SEED": "4",
        "PEERPOISE_TRAIN__EVALUATE_EVERY": "5",
        "PEERPOISE_DEBUG": "1",
    }
    config = load(
        ExperimentConfig, [file, later], ["train.evaluate_every=6", "run.name=two words"], environ
    )
    assert (config.train.rounds, config.train.seed, config.train.evaluate_every) == (8, 4, 6)
    assert config.train.checkpoint_every == 10
    assert config.run.name == "two words"


def test_an_empty_setting_removes_a_key(file: Path) -> None:
    config = load(ExperimentConfig, [file], ["privacy.epsilon=", "privacy.sigma=2.0"], {})
    assert (config.privacy.epsilon, config.privacy.sigma) == (None, 2.0)


def test_the_environment_is_one_for_both_files(tmp_path: Path) -> None:
    node = tmp_path / "node.toml"
    node.write_text('name = "a"\n[identity]\nkey = "k"\ncertificate = "c"\nca = "a"\n')
    environ = {"PEERPOISE_PRIVACY__SIGMA": "3", "PEERPOISE_COMPUTE__THREADS": "2"}
    assert load(NodeConfig, [node], (), environ).compute.threads == 2
    with pytest.raises(ConfigurationError, match="computing: unknown key"):
        load(NodeConfig, [node], (), {"PEERPOISE_COMPUTING__THREADS": "2"})


def test_origins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERPOISE_TRAIN__ROUNDS", "9")
    found = origins(ExperimentConfig, [file], ["privacy.rate=0.5"])
    assert found == {
        "privacy.epsilon": str(file),
        "privacy.rate": "--set privacy.rate",
        "train.rounds": "$PEERPOISE_TRAIN__ROUNDS",
    }


def test_what_is_written_is_read_back_equal(file: Path, tmp_path: Path) -> None:
    config = load(ExperimentConfig, [file], ["algorithm.beta=0.5"], {})
    write(config, tmp_path / "copy.toml")
    again = load(ExperimentConfig, [tmp_path / "copy.toml"], (), {})
    assert again == config
    assert again.run_config.run_id == config.run_config.run_id


def test_leaves() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_of_windows_editors_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "edges.txt").write_bytes("n0 n1 # süß\nn1 n2\n".replace("\n", end).encode(encoding))
    text = f'[run]\nname = "süß"\n[topology]\nkind = "edges"\nfile = "edges.txt"\n{TEXT}'
    (tmp_path / "run.toml").write_bytes(text.replace("\n", end).encode(encoding))
    config = load(ExperimentConfig, [tmp_path / "run.toml"], (), {})
    assert (config.run.name, len(config.topology.edges), config.privacy.epsilon) == ("süß", 2, 8)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-16", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-le", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-be", "is UTF-16 text; save it as UTF-8"),
        ("latin-1", r"is not UTF-8 text \(see line 2\); save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["run.toml", "edges.txt"])
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str, says: str) -> None:
    (tmp_path / "edges.txt").write_text("n0 n1\n# süß\n", encoding="utf-8")
    text = f'[run]\nname = "süß"\n[topology]\nkind = "edges"\nfile = "edges.txt"\n{TEXT}'
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    (tmp_path / name).write_bytes((tmp_path / name).read_text(encoding="utf-8").encode(encoding))
    with pytest.raises(ConfigurationError, match=f"{name} (is not valid TOML: it )?{says}"):
        load(ExperimentConfig, [tmp_path / "run.toml"], (), {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\3\4\x14\0\6\0", "is a workbook or an archive, not text"),
        (b"\0" * 90, "is no text, but zeros, as after a crash"),
        (gzip.compress(TEXT.encode())[:-9], r"can't be read \(it is cut or damaged\)"),
        (b"a = " + b"[" * 100_000, "lists too deep"),
        (b"a = " + b"9" * 5_000, "a number that is too long"),
    ],
    ids=["workbook", "zeros", "cut", "deep", "long"],
)
def test_what_is_no_configuration_is_one_sentence(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        load(ExperimentConfig, [tmp_path / "run.toml"], (), {})


def test_a_path_that_leads_nowhere_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.toml").symlink_to("run.toml")
    (tmp_path / "file").touch()
    for path in (tmp_path / "run.toml", tmp_path / "file" / "run.toml", tmp_path / ("a" * 300)):
        with pytest.raises(ConfigurationError, match=r"can't be read \(.+\); check the path"):
            load(ExperimentConfig, [path], (), {})


def test_a_setting_of_thousands_of_digits_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TEXT)
    for value in ("9" * 5_000, "[" * 100_000):
        with pytest.raises(ConfigurationError, match=r"train\.seed"):
            load(ExperimentConfig, [tmp_path / "run.toml"], [f"train.seed={value}"], {})


def test_files_that_a_run_names_lie_beside_it(
    peerpoise: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert peerpoise("init", "table").code == 0
    file = Path("table/run.toml")
    config = load(ExperimentConfig, [file])
    assert config.task.path == tmp_path / "table" / "sample.csv"
    typed = load(ExperimentConfig, [file], ["task.path=sample.csv", "validation.path=q.npz"])
    assert (typed.task.path, typed.validation.path) == (tmp_path / "sample.csv", tmp_path / "q.npz")
    assert load(ExperimentConfig, [file], ["task.path=sample.csv"]).digest == config.digest
    assert load(ExperimentConfig, [file], ["task.path=b.csv"]).digest != config.digest
