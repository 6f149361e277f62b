"""Commands that need no cluster: what they print and write."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit import cpu
from kit.command import Call
from node import data
from node.algorithms import ALGORITHMS, NOISED
from node.config import ExperimentConfig, NodeConfig, RunConfig, load, write
from node.experiments import hosts, provisioning
from node.experiments.resolve import resolve
from node.records import checkpoint, summary
from node.tasks import make, validation
from peer import files
from peer.errors import Diverged
from peer.identity.keys import Identity
from peer.identity.roster import Roster

ROOT = Path(__file__).parents[2]
HOSTS = (
    "--host",
    "a=10.0.0.1:7443",
    "--host",
    "b=[fd00::2]:7444",
    "--host",
    "c=host-c.example:7445",
)


def test_help_is_cheap() -> None:
    """In CPU seconds, best of three: other tests share the cores."""
    program = """
import resource, sys
sys.argv = ["peerpoise", "--help"]
from node.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
heavy = sorted({"torch", "dp_accounting", "grpc", "numpy", "pydantic"} & set(sys.modules))
usage = resource.getrusage(resource.RUSAGE_SELF)
print(heavy, usage.ru_utime + usage.ru_stime, file=sys.stderr)
"""
    seconds, small = [], []
    for _ in range(3):
        small.append(cpu.of_a_small_program())
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
        )
        heavy, spent = done.stderr.strip().rsplit(" ", 1)
        assert heavy == "[]"
        seconds.append(float(spent))
    assert min(seconds) < 2 * min(small)


def test_version(peerpoise: Call) -> None:
    assert re.fullmatch(r"peerpoise \d+\.\d+\.\d+\S*\n", peerpoise("--version").out)


def test_pack(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    result = peerpoise("pack", experiment, *HOSTS, "--out", out, "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert said["hosts"] == {name: str(out / name) for name in "abc"}
    expected = {
        "node.toml",
        "run.toml",
        "roster.json",
        "node.key",
        "node.pem",
        "ca.pem",
        "rows.npy",
        "README.txt",
    }
    for name in "abc":
        home = out / name
        assert {path.name for path in home.iterdir()} == expected
        assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert "peerpoise run --config node.toml" in (home / "README.txt").read_text()
        run = load(RunConfig, [home / "run.toml"], (), {})
        assert run.run_id == said["run_id"]
        assert run.start.timeout_s == hosts.START_S, "people start hosts by hand"
        node = load(NodeConfig, [home / "node.toml"], (), {})
        own = node.identity
        identity = Identity.load(*(home / path for path in own.files))
        member = Roster.load(home / node.roster, run.run.federation).by_name[name]
        assert (member.id, member.addresses) == (identity.id, (node.listen.advertise,))
    assert stat.S_IMODE((out / "federation" / "ca.key").stat().st_mode) == 0o600
    assert not list(out.glob("[abc]/ca.key"))
    node = load(NodeConfig, [out / "a" / "node.toml"], (), {})
    assert (node.listen.address, node.listen.advertise) == ("0.0.0.0:7443", "10.0.0.1:7443")
    assert load(NodeConfig, [out / "b" / "node.toml"], (), {}).listen.address == "[::]:7444"


def test_packed_rows_are_disjoint(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    soon = ("--set", "start.timeout_s=60")
    assert peerpoise("pack", experiment, *HOSTS, *soon, "--out", tmp_path / "out").code == 0
    run = load(RunConfig, [tmp_path / "out" / "run.toml"], (), {})
    assert run.start.timeout_s == 60, "which is the default, but somebody wrote it"
    rows = np.concatenate([np.load(tmp_path / "out" / name / "rows.npy") for name in "abc"])
    assert len(set(rows)) == len(rows)
    counts = json.loads((tmp_path / "out" / "partition.json").read_text())["histogram"]
    assert sum(map(sum, counts.values())) == len(rows)


def test_two_packs_of_one_file_are_two_runs(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    said = [
        json.loads(peerpoise("pack", experiment, *HOSTS, "--out", tmp_path / n, "--json").out)
        for n in "xy"
    ]
    assert said[0]["run_id"] != said[1]["run_id"]


def test_pack_own_data(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    data = (
        "--data",
        "a=ward7:/srv/x.npz",
        "--data",
        "b=ward8:/srv/y.npz",
        "--data",
        "c=ward9:/srv/z.npz",
    )
    call = ("pack", experiment, *HOSTS, *data, "--set", "task.data=own", "--out", tmp_path / "out")
    assert peerpoise(*call).code == 0
    node = load(NodeConfig, [tmp_path / "out" / "a" / "node.toml"], (), {})
    assert (node.data.name, node.data.path) == ("ward7", Path("/srv/x.npz"))
    assert not node.budget.experiment, "real data have a real ledger"
    assert "/srv/x.npz" in (tmp_path / "out" / "a" / "README.txt").read_text()
    assert not (tmp_path / "out" / "a" / "rows.npy").exists()


def test_pack_gives_every_host_the_validation_set(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """A copy beside node.toml, its digest in run.toml; the path it came from is nobody's
    business.
    """
    shared = tmp_path / "public.npz"
    np.savez(shared, x=np.zeros((4, 8, 8), np.float32), y=np.arange(4))
    theirs = [part for name in "abc" for part in ("--data", f"{name}=w{name}:/srv/x.npz")]
    own = ("--set", "task.data=own", "--set", "algorithm.name=pdsl")
    refused = peerpoise("pack", experiment, *HOSTS, *theirs, *own, "--out", tmp_path / "none")
    assert (refused.code, "validation.path" in refused.err) == (78, True)
    call = (
        "pack",
        experiment,
        *HOSTS,
        *theirs,
        *own,
        "--set",
        f"validation.path={shared}",
        "--out",
        tmp_path / "out",
    )
    assert peerpoise(*call).code == 0
    run = load(RunConfig, [tmp_path / "out" / "a" / "run.toml"], (), {})
    assert (run.validation.path, run.validation.digest) == (
        None,
        hashlib.sha256(shared.read_bytes()).hexdigest(),
    )
    for name in "abc":
        node = load(NodeConfig, [tmp_path / "out" / name / "node.toml"], (), {})
        assert node.data.validation is not None
        assert (tmp_path / "out" / name / node.data.validation).read_bytes() == shared.read_bytes()


def test_a_held_out_set_is_in_nobodys_rows(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    assert (
        peerpoise(
            "pack", experiment, *HOSTS, "--set", "algorithm.name=pdsl", "--out", tmp_path / "out"
        ).code
        == 0
    )
    run = load(RunConfig, [tmp_path / "out" / "run.toml"], (), {})
    held = validation.held_out(run, data.public_sets(run.task)[0].y.numpy())
    assert len(held) == run.validation.size
    for name in "abc":
        assert not set(np.load(tmp_path / "out" / name / "rows.npy")) & set(held)


def test_local_federation_has_no_authority_left(experiment: Path, tmp_path: Path) -> None:
    """`up` writes what `pack` writes, on loopback, with a throw-away ledger and a CA that is
    gone.
    """
    config = load(ExperimentConfig, [experiment], (), {})
    run, homes = provisioning.local(
        files.new_dir(tmp_path / "run"),
        resolve(config),
        [(7001, 7002), (7003, 7004), (7005, 7006)],
    )
    assert list(homes) == ["n0", "n1", "n2"]
    assert load(RunConfig, [homes["n2"] / "run.toml"], (), {}) == run
    assert not list((tmp_path / "run").rglob("ca.key"))
    node = load(NodeConfig, [homes["n1"] / "node.toml"], (), {})
    assert (node.listen.address, node.metrics.listen) == ("127.0.0.1:7003", "127.0.0.1:7004")
    assert node.budget.experiment
    assert node.budget.ledger_dir == Path("ledger"), "in the node's folder, gone with the run"


def test_authority_issues_for_keys_it_makes_and_for_requests(
    peerpoise: Call, tmp_path: Path
) -> None:
    made = peerpoise("ca", "create", tmp_path / "ca", "--json")
    assert json.loads(made.out)["folder"] == str(tmp_path / "ca")
    issued = json.loads(
        peerpoise("ca", "issue", tmp_path / "ca", "--out", tmp_path / "a", "--json").out
    )
    identity = Identity.load(
        *(tmp_path / "a" / name for name in ("node.key", "node.pem", "ca.pem"))
    )
    assert issued["id"] == identity.id
    shown = json.loads(peerpoise("ca", "show", tmp_path / "a", "--json").out)
    assert shown["names"] == f"{identity.id}.peerpoise"

    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "b.csr").write_bytes(request.public_bytes(serialization.Encoding.PEM))
    call = (
        "ca",
        "issue",
        tmp_path / "ca",
        "--request",
        tmp_path / "b.csr",
        "--out",
        tmp_path / "b",
        "--days",
        "7",
    )
    assert peerpoise(*call).code == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"node.pem", "ca.pem"}


def test_a_roster_loses_members_for_good(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    """pack makes it, remove signs the next version, and only the run's own CA can."""
    hosts = [
        word for k, name in enumerate("abc") for word in ("--host", f"{name}=10.0.0.{k + 1}:7443")
    ]
    assert peerpoise("pack", experiment, *hosts, "--out", tmp_path / "out").code == 0
    shown = json.loads(peerpoise("roster", "remove", tmp_path / "out", "b", "--json").out)
    assert (shown["version"], shown["members"], shown["removed"]) == (2, "a, c", "b")
    assert json.loads(peerpoise("roster", "show", tmp_path / "out", "--json").out) == shown
    for words, code, said in (
        (("b",), 78, "was removed from the roster before"),
        (("x",), 78, "which is not a member"),
        (("a", "c"), 78, "Nobody would be left"),
    ):
        refused = peerpoise("roster", "remove", tmp_path / "out", *words)
        assert refused.code == code
        assert said in refused.err
    peerpoise("ca", "create", tmp_path / "other")
    refused = peerpoise("roster", "remove", tmp_path / "out", "a", "--ca", tmp_path / "other")
    assert refused.code == 77
    assert json.loads(peerpoise("roster", "show", tmp_path / "out", "--json").out) == shown


def test_config_show_says_where_from(
    peerpoise: Call, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERPOISE_TRAIN__SEED", "5")
    call = ("config", "show", experiment, "--set", "privacy.rate=0.5", "--origin")
    shown = json.loads(peerpoise(*call, "--json").out)
    assert shown["train.rounds"] == {"value": 2, "origin": str(experiment)}
    assert shown["train.seed"] == {"value": 5, "origin": "$PEERPOISE_TRAIN__SEED"}
    assert shown["privacy.rate"] == {"value": 0.5, "origin": "--set privacy.rate"}
    assert shown["privacy.clip"] == {"value": 1.0, "origin": "default"}
    assert f"train.rounds = 2  # {experiment}\n" in peerpoise(*call).out


def test_config_knows_node_files(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    assert peerpoise("pack", experiment, *HOSTS, "--out", tmp_path / "out").code == 0
    shown = json.loads(
        peerpoise("config", "show", tmp_path / "out" / "a" / "node.toml", "--json").out
    )
    assert shown["listen.advertise"] == "10.0.0.1:7443"
    assert peerpoise("config", "check", tmp_path / "out" / "a" / "node.toml").code == 0
    assert peerpoise("config", "check", tmp_path / "out" / "a" / "run.toml").code == 0


def test_config_check_looks_at_what_a_node_file_names(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    """All mistakes, not the first only."""
    assert peerpoise("pack", experiment, *HOSTS, "--out", tmp_path / "out").code == 0
    home = tmp_path / "out" / "a"
    key = next(path for path in home.rglob("*.key"))
    key.chmod(0o644)
    (home / "roster.json").write_text("{}")
    result = peerpoise("config", "check", home / "node.toml", "--set", "compute.device=mps")
    assert result.code == 78
    said = result.err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["certificate", "device", "roster"]
    assert "chmod 600" in said[0]
    told = peerpoise("config", "check", home / "node.toml", "--json")
    assert json.loads(told.out)["ok"] is False
    assert len(json.loads(told.out)["faults"]) == 2


@pytest.mark.parametrize("which", ["run", "experiment", "node"])
def test_config_schema_is_a_schema(peerpoise: Call, experiment: Path, which: str) -> None:
    schema = json.loads(peerpoise("config", "schema", which).out)
    jsonschema.Draft202012Validator.check_schema(schema)
    if which == "experiment":
        jsonschema.validate(tomllib.loads(experiment.read_text(encoding="utf-8")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"nonsense": 1}, schema)


def test_algorithms_are_those_of_the_table(peerpoise: Call) -> None:
    found = {entry["name"]: entry for entry in json.loads(peerpoise("algorithms", "--json").out)}
    assert found.keys() == ALGORITHMS.keys() | NOISED.keys()
    assert all("never runs without noise" in found[name]["summary"] for name in NOISED)
    assert found["dpdl"]["paper"] == "arXiv 2606.04399"
    assert found["dpdl"]["reconstructions"]
    assert found["badam"]["summary"].startswith("BAdam, block-wise Adam of every node for itself")
    assert found["badam"]["paper"] == "arXiv 2404.02827"
    assert found["dec-lora"]["summary"].startswith("Dec-LoRA, which is DSGD-Adam of low-rank")
    assert found["dec-lora"]["paper"] == "arXiv 2106.09685"
    summaries = [entry["summary"] for entry in found.values()]
    assert len(set(summaries)) == len(summaries)
    assert not [text for text in summaries if "arXiv" in text or text.count("(") != text.count(")")]
    assert all(entry["summary"] for entry in found.values())
    text = peerpoise("algorithms").out
    assert all(re.search(rf"^{name} ", text, re.MULTILINE) for name in found)
    assert "reconstruction: " in text


@pytest.fixture
def run(experiment: Path, tmp_path: Path) -> Path:
    """A run folder with two nodes' models and their average."""
    folder = tmp_path / "run"
    config = load(ExperimentConfig, [experiment], (), {})
    task = make(config, np.arange(50))
    folder.mkdir()
    write(config.run_config, folder / "run.toml")
    for name, seed in (("nodes/n0", 0), ("nodes/n1", 1), (".", 2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        checkpoint.save_model(
            folder / name / "model.safetensors", task.layout, task.initial_parameters(seed)
        )
    return folder


def test_a_run_that_ends_in_no_numbers_says_so(
    peerpoise: Call, experiment: Path, tmp_path: Path
) -> None:
    settings = [
        "algorithm.name=d-psgd",
        "algorithm.lr=1e38",
        "train.rounds=5",
        "privacy.mode=none",
        "privacy.epsilon=",
    ]
    words = [word for it in settings for word in ("--set", it)]
    result = peerpoise("simulate", experiment, *words, "--folder", tmp_path / "run")
    assert result.code == Diverged.exit_code == 4
    assert "DIVERGED: the parameters" in result.out
    assert not summary.read(tmp_path / "run" / "summary.json").complete
    found = summary.read(tmp_path / "run" / "summary.json").diverged
    assert (
        found
        == [n for n in ("n0", "n1", "n2") if not _finite(tmp_path / "run" / "nodes" / n)]
        != []
    )


def _finite(home: Path) -> bool:
    return bool(checkpoint.load_model(home / "model.safetensors")[1].isfinite().all())


def test_export(peerpoise: Call, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    result = json.loads(peerpoise("export", run, "--node", "n1", "--out", out, "--json").out)
    _, x = checkpoint.load_model(run / "nodes" / "n1" / "model.safetensors")
    assert result == {"file": str(out), "params_digest": summary.digest(x)}
    assert bool((checkpoint.load_model(out)[1] == x).all())


def test_eval_is_the_task_on_the_public_test_set(peerpoise: Call, run: Path) -> None:
    task = make(load(RunConfig, [run / "run.toml"]), np.arange(1))
    for options, place in (([], "."), (["--average"], "."), (["--node", "n0"], "nodes/n0")):
        metrics = json.loads(peerpoise("eval", run, *options, "--json").out)
        _, x = checkpoint.load_model(run / place / "model.safetensors")
        assert metrics["accuracy"] == pytest.approx(task.evaluate(x)["accuracy"])


def test_eval_refuses_another_model(peerpoise: Call, run: Path) -> None:
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace('model = "softmax"', 'model = "mlp"'))
    result = peerpoise("eval", run)
    assert (result.code, "other tensors" in result.err) == (66, True)


def test_the_configuration_page_is_current() -> None:
    check = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    assert subprocess.run(check, capture_output=True, text=True, check=False).stderr == ""


def test_every_documented_command_exists(peerpoise: Call) -> None:
    """What follows `peerpoise` in a code block or in backticks is a command, and its options
    exist.
    """
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in _commands(page.read_text())]
    assert len(lines) > 12
    for line in lines:
        words = line.split()[1:]
        depth = 2 if words[0] in ("ca", "config", "ledger", "roster") else 1
        shown = peerpoise(*words[:depth], "--help")
        assert shown.code == 0, line
        assert all(option in shown.out for option in re.findall(r"--[a-z-]+", line)), line


def _commands(text: str) -> list[str]:
    blocks = "\n".join(re.findall(r"^ *```\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    in_blocks = [
        line.split("#")[0].strip()
        for line in blocks.splitlines()
        if line.strip().startswith("peerpoise ")
    ]
    prose = re.sub(r"^ *```\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [
        *in_blocks,
        *(span for span in re.findall(r"`(peerpoise [^`]+)`", prose) if "COMMAND" not in span),
    ]
