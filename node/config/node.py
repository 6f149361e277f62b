"""node.toml: one node's own, never digested, never sent."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from node.config.section import Device, DiscoveryName, OpenSection, Section
from node.config.task import TaskSection
from peer.errors import ConfigurationError


class AttackSection(OpenSection):
    """`[attack]`, needs `--i-am-testing`: what this node lies about (docs/poison.md). Every other
    key is the attack's own."""

    name: str
    """label-flip | feature-noise | sign-flip | scaling | gaussian | zero | echo | alie |
    inner-product | dissensus | state | reward-hack | free-rider."""


def state_folder(what: str) -> Path:
    """This user's folder of what outlives runs: the ledgers, and the host's key.

    Raises:
        ConfigurationError: nothing says where; `what` is what it is needed for, and what to set.
    """
    try:
        state = (
            os.environ.get("XDG_STATE_HOME")
            or os.environ.get("STATE_DIRECTORY")
            or Path.home() / ".local/state"
        )
    except RuntimeError:
        raise ConfigurationError(f"There is no home folder for {what}, or HOME.") from None
    return Path(state) / "peerpoise"


def host_key() -> Path:
    """Where `peerpoise request` makes this host's key.

    Raises:
        ConfigurationError: this user has no home folder.
    """
    return state_folder("this host's key: set identity.key in the node's file") / "node.key"


class IdentitySection(Section):
    key: Path | None = None
    """Private key (PEM, mode 0600); None: this host's own, which `peerpoise request` made:
    $XDG_STATE_HOME/peerpoise/node.key."""
    certificate: Path
    """This node's certificate (PEM)."""
    ca: Path
    """The federation's CA certificate (PEM)."""

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Key, certificate and CA, as `Identity.load` takes them.

        Raises:
            ConfigurationError: the key is this host's own, and this user has no home folder.
        """
        return self.key or host_key(), self.certificate, self.ca


class DataSection(Section):
    name: str = ""
    """Name of the private data set: its ledger's name. Required for own data."""
    path: Path | None = None
    """Own data: an .npz with arrays x (float or uint8) and y (integers), a table (.csv, .tsv,
    .parquet), or a folder of images in subfolders."""
    test: Path | None = None
    """Own test set, same form; None: no accuracy is reported."""
    test_public: bool = True
    """False: the test set is private. Its figures are outside of ε, so they stay on this host: in
    journal, status and summary, not in /metrics. True shares them there, too."""
    validation: Path | None = None
    """The validation set, same form, if the algorithm needs one; its SHA-256 is
    validation.digest in run.toml.
    """
    rows: Path | None = None
    """Public data: .npy with this node's row numbers (written by `up`)."""


class ListenSection(Section):
    address: str = "127.0.0.1:0"
    """host:port to bind; port 0 takes a free one (only useful when `up` distributes it)."""
    advertise: str = ""
    """host:port that neighbors dial; empty: the bound address, or for a wildcard address, those of
    this machine.
    """
    insecure: bool = False
    """No TLS at all. For experiments on one machine only; shown in logs, status, metrics and
    summary.
    """


class PeersSection(Section):
    static: dict[str, str] = {}
    """name -> host:port of members; they are tried before the roster's addresses."""
    discovery: tuple[DiscoveryName, ...] = ("static",)
    """Who finds addresses, together: static (roster and [peers.static]) | dns | exchange (members
    tell each other) | mdns (the local network); docs/discovery.md."""
    dns: str = ""
    """dns: host:port; with {name} in it a DNS name per node, otherwise one name with the records of
    all nodes.
    """


class ComputeSection(Section):
    device: Device = "auto"
    """Where gradients are computed: auto (a GPU if there is one) | cpu | cuda | cuda:N | mps."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of this daemon; more than one per core cuts speed tenfold."""
    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """Event loop; auto takes uvloop if it is installed."""


class BudgetSection(Section):
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["unlimited"] | None = None
    """Lifetime ε_total of this data set over all runs, or "unlimited". Required unless the ledger
    is temporary: run.toml must not decide what these data may cost."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """δ of the lifetime ε."""
    ledger_dir: Path | None = None
    """The folder of the ledgers; None: $XDG_STATE_HOME/peerpoise/ledger."""
    known_share: float = Field(default=0.1, gt=0, le=1)
    """Data are refused of which this share of rows, or more, is known under another ledger's name
    that has spent (docs/backup.md)."""
    accept_known: tuple[str, ...] = ()
    """Names of ledgers that may have rows of these data: what was spent under them is not counted
    here, which the journal and the summary say."""
    experiment: bool = False
    """Temporary ledger for bundled public data (set by `up` and `simulate`)."""

    @property
    def limit(self) -> float | None:
        """Lifetime ε_total; None: there is none, because the owner says so or because the data are
        public.

        Raises:
            ConfigurationError: the owner of the data has not decided.
        """
        if self.epsilon is None and not self.experiment:
            raise ConfigurationError(
                "budget.epsilon is missing in the node's file: write the ε that its data may spend "
                'in all runs together, or "unlimited"; otherwise the author of run.toml would '
                "decide it."
            )
        return None if self.epsilon == "unlimited" else self.epsilon

    @property
    def folder(self) -> Path:
        """Where ledgers lie.

        Raises:
            ConfigurationError: nothing says where.
        """
        if self.ledger_dir:
            return self.ledger_dir
        return state_folder("the privacy ledger: set budget.ledger_dir in the node's file") / (
            "ledger"
        )


class MetricsSection(Section):
    listen: str = "127.0.0.1:0"
    """host:port of /metrics; port 0 takes a free one (see `peerpoise status`); empty: none."""
    diagnostics: bool = False
    """Exports per-neighbor cosines in paper mode, too, where they leak."""


class GeneratorSection(Section):
    """`[generator]`: an OpenAI-compatible server (vLLM, SGLang, llama-server) that draws the
    answers of training for this node (docs/reasoning.md). Questions are sent to it in plain."""

    url: str
    """Its base, such as http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name there; empty: none is named."""
    key: Path | None = None
    """File with its API key, which only this user may read (mode 0600); it is sent as
    `Authorization: Bearer`, over https:// or within this machine. None: none is sent."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for all answers of a step; a server that takes longer ends the run."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        place = urlsplit(value)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError("http://HOST:PORT/v1 is expected")
        if "@" in place.netloc or place.query or place.fragment:
            raise ValueError(
                "a key does not belong there; name a file that has it in generator.key"
            )
        place.port  # noqa: B018 (raises where it is none)
        return value

    @model_validator(mode="after")
    def _keeps_its_key(self) -> GeneratorSection:
        place = urlsplit(self.url)
        if self.key and place.scheme == "http" and not _is_loopback(place.hostname or ""):
            raise ValueError(
                "the key would be sent in plain; use https://, or a server on this machine"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class NodeConfig(Section):
    """node.toml: private, never digested, never sent."""

    name: str
    """This node's name in the roster."""
    tasks: tuple[str, ...] = ()
    """Tasks, families of questions and scorers beside ours that run.toml may name (task.name,
    task.reasoning): their code runs here; a task's and a scorer's sees the private data.
    """
    run: Path = Path("run.toml")
    """The run file; relative paths are relative to this file's folder."""
    roster: Path = Path("roster.json")
    """The signed roster."""
    folder: Path = Path("state")
    """Run folder of this node: journal, checkpoints, summary, model."""
    identity: IdentitySection
    data: DataSection = DataSection()
    listen: ListenSection = ListenSection()
    peers: PeersSection = PeersSection()
    compute: ComputeSection = ComputeSection()
    budget: BudgetSection = BudgetSection()
    metrics: MetricsSection = MetricsSection()
    generator: GeneratorSection | None = None
    """Who draws this node's answers in training; None: the node itself."""
    attack: AttackSection | None = None
    """This node attacks its neighbors: for tests of one's own federation."""

    def check_task(self, task: TaskSection) -> None:
        """Asked before anything of the task's is imported.

        Raises:
            ConfigurationError: it is somebody's own code, which this file does not allow.
        """
        for name in task.own_code:
            if name not in self.tasks:
                scorer = task.reasoning and task.reasoning.scorer
                what = {task.name: "task", scorer: "scorer"}.get(name, "family")
                raise ConfigurationError(
                    f"run.toml wants the {what} {name!r}, whose code would run here and see the "
                    "data; if you trust it, write it into tasks in the node's file: tasks = "
                    f"{json.dumps([*self.tasks, name])}, above all sections."
                )
