"""run.toml: what is the same at every node. Its digest is the run's id."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from math import ceil, sqrt
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from node.config.section import OpenSection, RunName, Section
from node.config.task import TaskSection
from node.encoding import Json
from peer.neighborhood import Neighborhood
from peer.topology import GraphOptions, make_neighborhoods


class AlgorithmSection(OpenSection):
    """`[algorithm]`: the name; every other key belongs to the algorithm's own Config, which checks
    it.
    """

    name: str = "dpdl"
    """Which algorithm; `peerpoise algorithms` lists them."""


class TopologySection(Section):
    """The graph over the sorted names of the roster. W has Metropolis weights unless the edges have
    weights.
    """

    kind: str = "ring"
    """ring | full | star | bipartite (even–odd, complete) | grid | torus | hypercube | exponential
    (i ± 2^k) | erdos-renyi | edges."""
    p: float = Field(default=0.3, gt=0, le=1)
    """erdos-renyi: probability of each edge; drawn from train.seed until the graph is connected."""
    file: str = ""
    """edges: a file of them, "NAME NAME" or "NAME NAME WEIGHT" a line, beside this one; read into
    `edges`.
    """
    edges: tuple[tuple[str, str] | tuple[str, str, float], ...] = ()
    """edges: [name, name] or [name, name, weight] each. With weights they are W (symmetric, rows of
    sum 1).
    """

    @model_validator(mode="after")
    def _edges_are_used(self) -> TopologySection:
        if (self.file or self.edges) and self.kind != "edges":
            raise ValueError(
                f'file and edges belong to kind = "edges"; remove them, or "{self.kind}"'
            )
        return self


class TrainSection(Section):
    rounds: int = Field(default=100, ge=1, lt=2**31)
    """T, rounds of the whole run."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything that is public: initial parameters, Erdős–Rényi graphs, batches in mode
    none.
    """
    evaluate_every: int = Field(default=10, ge=0)
    """Rounds between evaluations on the public test set; 0: only at the end."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Rounds between checkpoints: the most that a crash undoes, and of deca, dsgd-adam and
    dec-lora, whose moments change in place, a stop in mid-round."""
    start: Path | None = None
    """The model that all nodes start from: a .safetensors file beside this one, of an earlier run
    (`peerpoise continue`). It costs no ε. None: initial parameters are drawn from the seed."""
    start_digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 (hex) of that file; written by `up` and `pack`, compared by every node."""
    public_start: bool = False
    """That file was learned from PUBLIC data alone (algorithm.name = "public"), so no ε of its own
    comes on top of this run's."""

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> TrainSection:
        if self.start_digest and self.start is None:
            raise ValueError("start_digest belongs to a file: name it as start, or remove both")
        if self.public_start and self.start is None:
            raise ValueError("public_start says something of a file: name it as start")
        return self


class PrivacySection(Section):
    mode: Literal["strict", "paper", "none"] = "strict"
    """strict: everything that leaves is noised first. paper: the papers' calibration (NOT a
    guarantee). none: no privacy.
    """
    epsilon: float | None = Field(default=None, gt=0)
    """Target ε_total over the run: σ is calibrated for the largest closed neighborhood. Excludes
    sigma.
    """
    sigma: float | None = Field(default=None, gt=0)
    """Noise multiplier: noise of std sigma·clip on the SUM of clipped gradients. Excludes epsilon
    (paper mode's own formula excepted)."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """δ of every ε that is shown."""
    clip: float = Field(default=1.0, gt=0)
    """C: largest norm of one example's gradient, with task.unit of one person's."""
    rate: float = Field(default=0.05, gt=0, le=1)
    """q: probability with which each example (with task.unit: person) enters a batch. Public, equal
    at all nodes."""
    batch: int = Field(default=64, ge=1)
    """B: the public divisor (in mode none also the size of the batch). Never recomputed from the
    private n_i.
    """
    batches: Literal["independent", "shared"] = "independent"
    """independent: a fresh secret batch for each answer. shared: one batch a round for all
    (accounted as such).
    """
    max_examples: int | None = Field(default=None, ge=1)
    """n: no answer, at any node, is larger than one from n examples can be (their sum is held to
    n·clip), and each takes the time of a batch of qn + 6√(qn); None: B/q. Raise it if a node has
    more examples, because the time of larger batches can be seen. Never anybody's private number of
    examples."""
    backend: Literal["auto", "ghost", "vmap", "loop"] = "auto"
    """How per-example gradients are clipped. auto: the first of ghost (linear layers only) and vmap
    that agrees with the loop at start, otherwise the loop."""
    chunk: int | None = Field(default=None, ge=1)
    """Examples per chunk; None: 16 to 128, for vmap fewer with larger models."""
    paper_q: float | None = Field(default=None, gt=0)
    """paper mode: the q the authors' code uses in its formula instead of `rate`."""
    insecure_seed: int | None = None
    """Replaces the secret noise and batch keys by public ones, for reproduction. Destroys the
    guarantee and says so.
    """

    @property
    def public_examples(self) -> float:
        """n: how many examples, with task.unit persons, a node is taken to have: max_examples, else
        B/q. Nobody's data were counted for it.
        """
        return self.max_examples or self.batch / self.rate

    @property
    def largest_batch(self) -> int:
        """⌈qn + 6√(qn)⌉: examples of which an answer takes the time, however few are in its secret
        batch.
        """
        expected = self.rate * self.public_examples
        return ceil(expected + 6 * sqrt(expected))

    @property
    def largest_sum(self) -> float:
        """n·C, the largest norm of a sum of clipped gradients."""
        return self.clip * self.public_examples

    @model_validator(mode="after")
    def _one_target(self) -> PrivacySection:
        if self.mode == "strict" and (self.epsilon is None) == (self.sigma is None):
            raise ValueError("mode strict needs either epsilon (a target) or sigma, and not both")
        if self.mode == "paper" and self.sigma is None and self.epsilon is None:
            raise ValueError("mode paper needs epsilon (for the paper's formula) or sigma")
        return self


class ValidationSection(Section):
    """The examples on which ROSS and PDSL score what they receive; the same at all nodes, never
    sent.
    """

    size: int | None = Field(default=None, ge=1)
    """Public data sets: this many training examples, equally many of each class, are held out
    before the data are divided, whatever the algorithm. None: 500 (at most a tenth of the set) if
    the algorithm needs them."""
    path: Path | None = None
    """Own data: a file like data.path; `pack` gives every host a copy (data.validation in its
    node.toml).
    """
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 (hex) of that file, or of the examples held out; written by `up` and `pack`, compared
    in handshakes.
    """
    public: bool = True
    """False: the validation set is private and outside the guarantee, which is noted beside every
    ε."""


class MixSection(Section):
    """How a neighborhood's vectors are averaged, for any algorithm."""

    rule: Literal["mean", "median", "trimmed_mean", "multi_krum", "clipping"] = "mean"
    """mean: weighted by W. The others tolerate neighbors that lie, but don't preserve the mean over
    the nodes (docs/poison.md). clipping: self-centered."""
    byzantine: int = Field(default=1, ge=0)
    """How many liars among a node and its neighbors are tolerated: trimmed_mean leaves out this
    many values of a coordinate on each side, multi_krum this many vectors, clipping this many
    neighbors when it takes τ from the others' distances."""
    tau: float | None = Field(default=None, gt=0)
    """clipping: τ, how far a neighbor can pull (a norm); None: the largest distance after the
    `byzantine` farthest.
    """


class LimitsSection(Section):
    """How large a node's payloads may be. Larger ones are refused like malformed data."""

    rms: float = Field(default=1e4, gt=0, le=1e9)
    """Largest root mean square of what is sent, except noised answers. A node whose own state
    exceeds it has diverged and stops; neighbors refuse larger payloads."""


class SyncSection(Section):
    mode: Literal["round", "quorum", "async"] = "round"
    """round: wait for all live neighbors. quorum: for a share of them. async: never wait; not for
    algorithms that train block by block."""
    deadline_s: float = Field(default=10.0, gt=0)
    """Seconds without any progress after which a neighbor is lost. Measures progress, not compute
    time.
    """
    slowest: float = Field(default=10.0, ge=1)
    """How many times as long as the faster half of the neighbors (or this node, if it has only one
    neighbor) a neighbor may take for a round. More uses up patience."""
    patience_s: float | None = Field(default=None, gt=0)
    """Seconds for which a neighbor that is slower than that, but makes progress, is waited for
    before it is lost; after each loss half of what is left, so twice as many in the whole run. A
    tenth of the time in which it is on time is given back. Unset: the time of 30 rounds of the
    faster half, at least 3 deadlines and at most 900 s."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Share of live neighbors to wait for in quorum mode."""
    staleness: int = Field(default=2, ge=0)
    """τ: async mode uses messages up to this many rounds old."""


class StartSection(Section):
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for all neighbors before round 0. `pack` writes an hour where the file has
    none: people start hosts one after another."""
    min_neighbors: int = Field(default=1, ge=0)
    """Neighbors needed to start at the timeout."""


class RunSection(Section):
    name: RunName = "run"
    """A name for people; part of the run folder's name."""
    nonce: str = ""
    """Random, written by `up` and `pack`, so that two runs of one file differ."""
    federation: str = ""
    """The federation's public key (base64 DER), written by `up` and `pack`; it signs the roster."""


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
    limits: LimitsSection = LimitsSection()
    sync: SyncSection = SyncSection()
    start: StartSection = StartSection()

    @model_validator(mode="after")
    def _no_ghosts_of_units(self) -> RunConfig:
        if self.task.unit and self.privacy.backend == "ghost":
            raise ValueError(
                'privacy.backend = "ghost" clips single rows, and the mean of several is no outer '
                'product; with task.unit use "auto"'
            )
        return self

    @model_validator(mode="after")
    def _whitened_by_what_is_public(self) -> RunConfig:
        known, own = self.validation, self.task.data == "own"
        if self.task.whiten is None:
            return self
        if known.path is None and not (known.digest if own else known.size):
            raise ValueError(
                "task.whiten learns from the validation set: set "
                f"{'validation.path' if own else 'validation.size'}"
            )
        if not known.public:
            raise ValueError(
                "task.whiten learns from the validation set, which validation.public = false says "
                "is private; whiten by a public one, or leave task.whiten out"
            )
        return self

    @property
    def wiring(self) -> GraphOptions:
        """What the graph needs beside its kind and the names."""
        return GraphOptions(p=self.topology.p, seed=self.train.seed, edges=self.topology.edges)

    def neighborhoods(self, names: Sequence[str]) -> dict[str, Neighborhood]:
        """Every node's closed neighborhood on the run's graph over these names.

        Raises:
            ConfigurationError: no such graph over them.
        """
        return make_neighborhoods(self.topology.kind, names, self.wiring)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical content; in which folder a host keeps the files that are
        named is its own matter.
        """
        content = without_folders(self.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """The run's name on the wire: 26 characters of the digest."""
        return base64.b32encode(bytes.fromhex(self.digest)).decode().lower()[:26]


def without_folders(run: Json) -> Json:
    """A run's values, as JSON has them, wherever the files lie that it names; its start goes by its
    digest.
    """
    run = deepcopy(run)
    del run["train"]["start"]
    for section in filter(None, (run["validation"], run["task"], run["task"]["text"])):
        named = {key: Path(section[key]).name for key in ("path", "test") if section.get(key)}
        section.update(named)
    return run
