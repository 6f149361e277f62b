"""Configuration: what is the same everywhere (`RunConfig`, run.toml), what is one node's own
(`NodeConfig`, node.toml), and what only `up` and `simulate` read (`[experiment]`).

Frozen pydantic models; an unknown key is an error. `load` reads TOML files, applies environment and
`--set`, and turns every mistake into one sentence. run_id is the digest of the run file's content.
"""

from __future__ import annotations

from node.config.algorithm import AlgorithmConfig, PaperCalibrated
from node.config.experiment import Attackers, ExperimentConfig, ExperimentSection
from node.config.loading import (
    ENVIRONMENT_PREFIX,
    detect_config,
    divide,
    drop_none,
    flatten,
    layers,
    load,
    merge,
    nested,
    origins,
    sentence,
    take_beside,
    write,
)
from node.config.node import (
    AttackSection,
    BudgetSection,
    ComputeSection,
    DataSection,
    GeneratorSection,
    IdentitySection,
    ListenSection,
    MetricsSection,
    NodeConfig,
    PeersSection,
)
from node.config.run import (
    AlgorithmSection,
    LimitsSection,
    MixSection,
    PrivacySection,
    RunConfig,
    RunSection,
    StartSection,
    SyncSection,
    TopologySection,
    TrainSection,
    ValidationSection,
    without_folders,
)
from node.config.section import Device, DiscoveryName, OpenSection, RunName, Section
from node.config.task import ReasoningSection, TaskSection, TextSection

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AlgorithmConfig",
    "AlgorithmSection",
    "AttackSection",
    "Attackers",
    "BudgetSection",
    "ComputeSection",
    "DataSection",
    "Device",
    "DiscoveryName",
    "ExperimentConfig",
    "ExperimentSection",
    "GeneratorSection",
    "IdentitySection",
    "ListenSection",
    "MetricsSection",
    "LimitsSection",
    "MixSection",
    "NodeConfig",
    "OpenSection",
    "PaperCalibrated",
    "PeersSection",
    "PrivacySection",
    "ReasoningSection",
    "RunConfig",
    "RunName",
    "RunSection",
    "Section",
    "StartSection",
    "SyncSection",
    "TaskSection",
    "TextSection",
    "TopologySection",
    "TrainSection",
    "ValidationSection",
    "detect_config",
    "divide",
    "layers",
    "flatten",
    "load",
    "merge",
    "nested",
    "origins",
    "sentence",
    "take_beside",
    "drop_none",
    "without_folders",
    "write",
]
