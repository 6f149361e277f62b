"""Configuration: what is the same everywhere (`RunConfig`, run.toml), what is one node's own (`NodeConfig`, node.toml),
and what only `up` and `simulate` read (`[experiment]`).

Frozen pydantic models; an unknown key is an error. `load` reads TOML files, applies environment and `--set`, and turns
every mistake into one sentence. run_id is the digest of the run file's content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from node import edges
from peer.discovery import DISCOVERIES
from peer.errors import ConfigurationError
from peer.neighborhood import Neighborhood
from peer.topology import Wiring, neighborhoods

ENVIRONMENT_PREFIX = "PEERPOISE_"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda, cuda:N or mps is expected")
    return name


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\\x00-\x1f]{1,80}", name):
        raise ValueError("1 to 80 characters without slashes are expected, as it names a folder")
    return name


def _discovery(name: str) -> str:
    if name not in DISCOVERIES:
        raise ValueError(f"there is no discovery {name!r}; choose among {', '.join(DISCOVERIES)}")
    return name


Device = Annotated[str, AfterValidator(_device)]
DiscoveryName = Annotated[str, AfterValidator(_discovery)]
RunName = Annotated[str, AfterValidator(_run_name)]


class AlgorithmSection(Section):
    """`[algorithm]`: the name; every other key belongs to the algorithm's own Config, which checks it."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str = "dpdl"
    """Which algorithm; `peerpoise algorithms` lists them."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TopologySection(Section):
    """The graph over the sorted names of the roster. W is Metropolis', unless edges with weights give it."""

    kind: str = "ring"
    """ring | full | star | bipartite (even–odd, complete) | grid | torus | hypercube | exponential (i ± 2^k) |
    erdos-renyi | edges."""
    p: float = Field(default=0.3, gt=0, le=1)
    """erdos-renyi: probability of each edge; drawn from train.seed until the graph is connected."""
    file: str = ""
    """edges: a file of them, "NAME NAME" or "NAME NAME WEIGHT" a line, beside this one; read into `edges`."""
    edges: tuple[tuple[str, str] | tuple[str, str, float], ...] = ()
    """edges: [name, name] or [name, name, weight] each. With weights they are W (symmetric, rows of sum 1)."""

    @model_validator(mode="after")
    def _edges_are_used(self) -> TopologySection:
        if (self.file or self.edges) and self.kind != "edges":
            raise ValueError(f'file and edges belong to kind = "edges"; remove them, or "{self.kind}"')
        return self


class TaskSection(Section):
    name: str = "classification"
    """classification, or your own: "package.module:function" (docs/own-task.md). Its code sees the private data."""
    data: str = "digits"
    """digits | mnist | fashion-mnist | cifar-10 | torchvision:NAME: public sets, divided among the nodes (see
    $PEERPOISE_DATA). file: the PUBLIC file `path`, divided as well. own: each node's data.path."""
    path: Path | None = None
    """data = "file": .npz, .csv, .tsv, .parquet or a folder of images; relative to the working directory."""
    held_out: bool = False
    """Public sets: a fifth of every class of the TRAINING examples is held out, and tested on in place of the test set.
    For choosing a learning rate, which must not be done by the test set."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order: sub-folders of images, values of a table's label column. Empty: integers."""
    label: str = "label"
    """A table's column of labels."""
    features: dict[str, tuple[float, float]] = {}
    """A table's columns to learn from: name = [centre, scale], PUBLIC constants; (value − centre)/scale is learnt."""
    channels: Literal[1, 3] = 3
    """Folders of images: 1 makes them grey."""
    model: str = "softmax"
    """softmax | mlp | lenet | cnn and cnn-cifar (the papers', for 1×28×28 and 3×32×32) | resnet8."""
    hidden: int = Field(default=64, ge=1)
    """Width of the MLP's hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of cnn-cifar (0.4 in the authors' code). Above 0 gradients depend on a random mask drawn from torch's own
    generator, so runs don't repeat bit for bit and per-example gradients are computed by the slower loop."""
    image_size: int | None = Field(default=None, ge=4, le=512)
    """Images are scaled (bilinear) to this many pixels a side; None leaves them as they are."""
    mean: tuple[float, ...] = ()
    """Images, by channel: (x − mean)/std is learnt, x in 0 … 1. PUBLIC constants, say the published ones of a data set:
    those of private data would give something of them away. Empty: x as it is."""
    std: tuple[float, ...] = ()
    """See mean; as many."""
    classes: int = Field(default=10, ge=2)
    """Number of labels, 0 … classes − 1."""

    @model_validator(mode="after")
    def _as_many_labels(self) -> TaskSection:
        if self.labels and len(set(self.labels)) != self.classes:
            raise ValueError(f"labels names {len(set(self.labels))} classes, but classes is {self.classes}")
        if bad := [name for name, (_, scale) in self.features.items() if not scale > 0]:
            raise ValueError(f"the scale of feature {bad[0]!r} must be positive")
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError("mean and std need as many figures each, and those of std must be positive")
        return self


class TrainSection(Section):
    rounds: int = Field(default=100, ge=1, lt=2**31)
    """T, rounds of the whole run."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything that is public: initial parameters, Erdős–Rényi graphs, batches in mode none."""
    evaluate_every: int = Field(default=10, ge=0)
    """Rounds between evaluations on the public test set; 0: only at the end."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Rounds between checkpoints."""


class PrivacySection(Section):
    mode: Literal["strict", "paper", "none"] = "strict"
    """strict: all that leaves is noised first. paper: the papers' calibration (NOT a guarantee). none: no privacy."""
    epsilon: float | None = Field(default=None, gt=0)
    """Target ε_total over the run: σ is calibrated for the largest closed neighbourhood. Excludes sigma."""
    sigma: float | None = Field(default=None, gt=0)
    """Noise multiplier: noise of std sigma·clip on the SUM of clipped gradients. Excludes epsilon (paper mode's own
    formula excepted)."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """δ of every ε that is shown."""
    clip: float = Field(default=1.0, gt=0)
    """C: largest norm of one example's gradient."""
    rate: float = Field(default=0.05, gt=0, le=1)
    """q: probability with which each example enters a batch. Public, equal at all nodes."""
    batch: int = Field(default=64, ge=1)
    """B: the public divisor (in mode none also the size of the batch). Never recomputed from the private n_i."""
    batches: Literal["independent", "shared"] = "independent"
    """independent: a fresh secret batch for each answer. shared: one batch a round for all (accounted as such)."""
    backend: Literal["auto", "ghost", "vmap", "loop"] = "auto"
    """How gradients are clipped one by one. auto: the first of ghost (linear layers only) and vmap that agrees with the
    loop at start, else the loop."""
    chunk: int | None = Field(default=None, ge=1)
    """Examples per chunk; None: 16 to 128, for vmap fewer with larger models."""
    paper_q: float | None = Field(default=None, gt=0)
    """paper mode: the q the authors' code uses in its formula instead of `rate`."""
    insecure_seed: int | None = None
    """Replaces the secret noise and batch keys by public ones, for reproduction. Destroys the guarantee and says so."""

    @model_validator(mode="after")
    def _one_target(self) -> PrivacySection:
        if self.mode == "strict" and (self.epsilon is None) == (self.sigma is None):
            raise ValueError("mode strict needs either epsilon (a target) or sigma, and not both")
        if self.mode == "paper" and self.sigma is None and self.epsilon is None:
            raise ValueError("mode paper needs epsilon (for the paper's formula) or sigma")
        return self


class ValidationSection(Section):
    """The examples on which ROSS and PDSL value what they hear; the same at all nodes, never sent."""

    size: int | None = Field(default=None, ge=1)
    """Public data sets: so many training examples, of all classes alike, are held out before the data are divided,
    whatever the algorithm. None: 500 (a tenth, if that is less) where the algorithm needs them."""
    path: Path | None = None
    """Own data: a file like data.path; `pack` gives every host a copy (data.validation in its node.toml)."""
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 (hex) of that file, or of the examples held out; written by `up` and `pack`, compared in handshakes."""
    public: bool = True
    """False: the validation set is private and outside the guarantee; said beside every ε."""


class MixSection(Section):
    """How what the neighbours say is averaged, by any algorithm."""

    rule: Literal["mean", "median", "trimmed_mean", "multi_krum", "clipping"] = "mean"
    """mean: weighted by W. The others bear neighbours that lie, but keep no mean over the nodes (docs/poison.md).
    clipping: self-centred."""
    trim: int = Field(default=1, ge=0)
    """How many liars among a node and its neighbours are borne: trimmed_mean leaves out so many values of a coordinate
    on each side, multi_krum so many vectors, clipping so many neighbours when it takes τ from the others' distances."""
    tau: float | None = Field(default=None, gt=0)
    """clipping: τ, how far a neighbour can pull (a norm); None: the largest distance after the `trim` farthest."""


class SyncSection(Section):
    mode: Literal["round", "quorum", "async"] = "round"
    """round: wait for all live neighbours. quorum: for a share of them. async: never wait."""
    deadline_s: float = Field(default=10.0, gt=0)
    """Seconds without any progress after which a neighbour is lost. Measures progress, not compute time."""
    patience_s: float = Field(default=900.0, gt=0)
    """Seconds after which even a neighbour that shows progress is no longer waited for in one phase."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Share of live neighbours to wait for in quorum mode."""
    staleness: int = Field(default=2, ge=0)
    """τ: largest age in rounds of what is used in async mode."""


class StartSection(Section):
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for all neighbours before round 0."""
    min_neighbours: int = Field(default=1, ge=0)
    """Neighbours needed to start at the timeout."""


class RunSection(Section):
    name: RunName = "run"
    """For people; part of the run folder's name."""
    nonce: str = ""
    """Random, written by `up` and `pack`, so that two runs of one file differ."""
    federation: str = ""
    """The federation's public key (base64 DER), written by `up` and `pack`; it signs the roster."""


class AttackSection(Section):
    """`[attack]`, needs `--i-am-testing`: what this node lies about (docs/poison.md). Every other key is the attack's
    own."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """label-flip | feature-noise | sign-flip | scaling | gaussian | zero | echo | alie | inner-product | dissensus |
    state."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Attackers(AttackSection):
    """`[experiment.attack]`: some nodes of the experiment attack. Every other key is the attack's own."""

    nodes: int | tuple[str, ...] = 1
    """Who attacks: names, or how many, which are spread evenly over the sorted names, from the first on."""


class ExperimentSection(Section):
    """Read by `up` and `simulate` only."""

    nodes: int = Field(default=4, ge=1)
    """Number of nodes, named n0, n1, … (zero-padded)."""
    partition: Literal["iid", "dirichlet", "dirichlet-unequal", "shards", "column"] = "dirichlet"
    """How the public data set is divided. dirichlet: each node draws class priors, all get equally many rows (the
    papers). dirichlet-unequal: each class is shared out by a Dirichlet draw. shards: rows sorted by label are cut, each
    node gets `shards` pieces. column: the values of `column` are dealt to the nodes."""
    alpha: float = Field(default=0.25, gt=0)
    """Dirichlet concentration; small is very non-IID."""
    shards: int = Field(default=2, ge=1)
    """Pieces per node."""
    column: str = ""
    """A table's column, or an array [n] of the .npz, e.g. who wrote a digit."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the partition."""
    device: Device = "cpu"
    """Where gradients are computed (see compute.device). Small models are faster on the CPU, bits repeat only there."""
    attack: Attackers | None = None
    """Some of the nodes attack the others; run.toml never says so."""

    @property
    def attackers(self) -> tuple[str, ...]:
        """Who attacks, sorted."""
        if self.attack is None:
            return ()
        if isinstance(who := self.attack.nodes, int):
            return tuple(self.names[k * self.nodes // who] for k in range(who))
        return tuple(sorted(who))

    def attack_of(self, name: str) -> AttackSection | None:
        """What this node does to its neighbours, as its node.toml has it."""
        if self.attack is None or name not in self.attackers:
            return None
        return AttackSection(name=self.attack.name, **self.attack.options)

    @model_validator(mode="after")
    def _somebody_is_honest(self) -> ExperimentSection:
        if self.attack is None:
            return self
        who = self.attack.nodes
        if not isinstance(who, int) and (unknown := sorted(set(who) - set(self.names))):
            raise ValueError(f"attack.nodes names {unknown[0]}, but the nodes are {self.names[0]} … {self.names[-1]}")
        count = who if isinstance(who, int) else len(who)
        if not isinstance(who, int) and len(set(who)) < count:
            raise ValueError("attack.nodes names a node twice")
        if count < 1 or count > self.nodes:
            raise ValueError(f"attack.nodes = {count} of {self.nodes} nodes; 1 to {self.nodes - 1} can attack")
        if count == self.nodes:
            raise ValueError(f"all {count} nodes attack and nobody is left who is honest; lower attack.nodes")
        return self

    @property
    def names(self) -> list[str]:
        """n0, n1, …, as wide as the last, so that sorting them is counting them."""
        width = len(str(self.nodes - 1))
        return [f"n{i:0{width}}" for i in range(self.nodes)]


class RunConfig(Section):
    """run.toml: identical on every node."""

    run: RunSection = RunSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    topology: TopologySection = TopologySection()
    task: TaskSection = TaskSection()
    train: TrainSection = TrainSection()
    privacy: PrivacySection
    validation: ValidationSection = ValidationSection()
    mix: MixSection = MixSection()
    sync: SyncSection = SyncSection()
    start: StartSection = StartSection()

    @property
    def wiring(self) -> Wiring:
        """What the graph needs beside its kind and the names."""
        return Wiring(p=self.topology.p, seed=self.train.seed, edges=self.topology.edges)

    def neighborhoods(self, names: Sequence[str]) -> dict[str, Neighborhood]:
        """Every node's closed neighbourhood on the run's graph over these names.

        Raises:
            ConfigurationError: no such graph over them.
        """
        return neighborhoods(self.topology.kind, names, self.wiring)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical content."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """The run's name on the wire: 26 characters of the digest."""
        return base64.b32encode(bytes.fromhex(self.digest)).decode().lower()[:26]


class ExperimentConfig(RunConfig):
    """The file of `up` and `simulate`: a run and `[experiment]`."""

    experiment: ExperimentSection = ExperimentSection()

    @property
    def run_config(self) -> RunConfig:
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


class IdentitySection(Section):
    key: Path
    """Private key (PEM, mode 0600)."""
    certificate: Path
    """This node's certificate (PEM)."""
    ca: Path
    """The federation's CA certificate (PEM)."""


class DataSection(Section):
    name: str = ""
    """Name of the private data set: its ledger's name. Required for own data."""
    path: Path | None = None
    """Own data: an .npz with arrays x (float or uint8) and y (integers), a table (.csv, .tsv, .parquet), or a folder
    of images in sub-folders."""
    test: Path | None = None
    """Own public test set, same form; None: no accuracy is reported."""
    validation: Path | None = None
    """The validation set, same form, where the algorithm needs one; its SHA-256 is validation.digest in run.toml."""
    rows: Path | None = None
    """Public data: .npy with this node's row numbers (written by `up`)."""


class ListenSection(Section):
    address: str = "127.0.0.1:0"
    """host:port to bind; port 0 takes a free one (only useful when `up` distributes it)."""
    advertise: str = ""
    """host:port neighbours dial; empty: the bound address, or where that is all of them, those of this machine."""
    insecure: bool = False
    """No TLS at all. For experiments on one machine only; shown in logs, status, metrics and summary."""


class PeersSection(Section):
    static: dict[str, str] = {}
    """name -> host:port of members; these come before the roster's addresses."""
    discovery: tuple[DiscoveryName, ...] = ("static",)
    """Who finds addresses, together: static (roster and [peers.static]) | dns | exchange (members tell each other) |
    mdns (the local network); docs/discovery.md."""
    dns: str = ""
    """dns: host:port; with {name} in it a DNS name per node, else one whose records are all nodes'."""


class ComputeSection(Section):
    device: Device = "auto"
    """Where gradients are computed: auto (a GPU where there is one) | cpu | cuda | cuda:N | mps."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of this daemon; more than one per core cuts speed tenfold."""
    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """Event loop; auto takes uvloop where it is installed."""


class BudgetSection(Section):
    epsilon: float | None = Field(default=None, gt=0)
    """Lifetime ε_total of this data set over all runs; None: only the run's own target holds."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """δ of the lifetime ε."""
    ledger_dir: Path | None = None
    """Where ledgers lie; None: $XDG_STATE_HOME/peerpoise/ledger."""
    experiment: bool = False
    """Throw-away ledger for bundled public data (set by `up` and `simulate`)."""

    @property
    def folder(self) -> Path:
        """Where ledgers lie."""
        home = os.environ.get("XDG_STATE_HOME") or os.environ.get("STATE_DIRECTORY")
        state = Path(home) if home else Path.home() / ".local" / "state"
        return self.ledger_dir or state / "peerpoise" / "ledger"


class MetricsSection(Section):
    listen: str = "127.0.0.1:0"
    """host:port of /metrics; port 0 takes a free one (see `peerpoise status`); empty: none."""
    diagnostics: bool = False
    """Exports per-neighbour cosines in paper mode too, where they leak."""


class NodeConfig(Section):
    """node.toml: private, never digested, never sent."""

    name: str
    """This node's name in the roster."""
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
    attack: AttackSection | None = None
    """This node attacks its neighbours: for tests of one's own federation."""


C = TypeVar("C", bound=Section)


def load(
    model: type[C], files: Sequence[Path], settings: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> C:
    """Reads and checks. Precedence: `settings` ("a.b=value", the value in TOML or a bare word; an empty value removes
    the key) > environment (PEERPOISE_SECTION__KEY) > later files > earlier files > defaults.

    Raises:
        ConfigurationError: one sentence naming the file or setting, the key, and what is expected.
    """
    merged: dict[str, Any] = {}
    for _, values in layers(model, files, settings, environ):
        merge(merged, values)
    edges.inline(merged, files[-1].parent if files else Path())
    try:
        return model(**without_removed(merged))
    except ValidationError as error:
        raise ConfigurationError(sentence(error, files)) from None


def kind_of(file: Path) -> type[ExperimentConfig] | type[NodeConfig]:
    """What a file is to be read as: one that names an identity is a node's, anything else is a run or an experiment.

    Raises:
        ConfigurationError: as `load`.
    """
    return NodeConfig if {"name", "identity"} & set(_read(file)) else ExperimentConfig


def layers(
    model: type[Section], files: Sequence[Path], settings: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """(where from, nested values) of everything that is set, lowest precedence first. A removed key's value is None."""
    found = [(str(file), _read(file)) for file in files]
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name:
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            if path[0] in model.model_fields or path[0] not in _all_sections():
                found.append((f"${name}", nested(path, _value(value))))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigurationError(f"--set {setting!r} is not of the form section.key=value.")
        found.append((f"--set {key}", nested(key.split("."), _value(value))))
    return found


def origins(model: type[Section], files: Sequence[Path], settings: Sequence[str] = ()) -> dict[str, str]:
    """section.key -> where its value comes from, for everything that is set; what is not in it is a default."""
    found: dict[str, str] = {}
    for origin, values in layers(model, files, settings):
        found |= dict.fromkeys(leaves(values), origin)
    return found


def write(config: Section, file: Path) -> None:
    """Writes a configuration as TOML that `load` reads back equal (None is left out: TOML has no null)."""
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as {"section.key": value}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _all_sections() -> set[str]:
    """The environment is one for both files: a section that belongs to the other file is passed over."""
    return {*ExperimentConfig.model_fields, *NodeConfig.model_fields}


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {file}; check the path.") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{file} is a folder; name the TOML file in it.") from None
    except PermissionError:
        raise ConfigurationError(f"{file} may not be read by this user; check its permissions.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}.") from None


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Lays nested values over others, in place."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """["a", "b"], 1 -> {"a": {"b": 1}}."""
    for key in reversed(path):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"] if text else None
    except tomllib.TOMLDecodeError:
        return text


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the keys that were set to None."""
    kept = {key: without_removed(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None}


def sentence(error: ValidationError, files: Sequence[Path], within: str = "") -> str:
    """One sentence for pydantic's complaint about what the files say, or what they say `within` a section."""
    first = error.errors(include_url=False)[0]
    where = ".".join(filter(None, [within, *map(str, first["loc"])])) or "the file"
    source = f" ({', '.join(map(str, files))})" if files else ""
    more = error.error_count() - 1
    what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return f"Configuration{source}: {where}: {what}." + (f" ({more} more mistakes follow.)" if more else "")
