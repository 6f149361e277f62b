"""Puts one node's learning together: its task, its gate and its algorithm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.algorithms import Capability
from node.attacks import Attack
from node.config import (
    DataSection,
    GeneratorSection,
    RunConfig,
)
from node.device import pick
from node.hooks import NO_HOOKS, Hooks
from node.learning import promises
from node.learning import start as beginning
from node.learning.averaged import averaged
from node.learning.learner import Learner
from node.learning.plan import Plan
from node.learning.requirements import room_for_blocks
from node.learning.resources import resources
from node.learning.unusable import UnusableRecords
from node.maths.grpo import GrpoConfig
from node.maths.policy import Draws
from node.privacy.calibration import release_mechanism
from node.privacy.gate import GateConfig, make_gate
from node.privacy.ledger import Ledger
from node.privacy.unit_task import by_unit
from node.randomness import Keys
from node.rounds.bounds import Bounds
from node.task import Task
from node.tasks import TASKS, make
from peer.errors import ConfigurationError, TaskError
from peer.message import Peer


def build(
    plan: Plan,
    name: Peer,
    data: DataSection | NDArray[np.int64],
    *,
    ledger: Ledger | None,
    sigma: float | None = None,
    start: Tensor | None = None,
    limit: float | None = None,
    limit_delta: float = 1e-5,
    device: str = "cpu",
    generator: GeneratorSection | None = None,
    attack: Attack | None = None,
    admit: Callable[[Task], None] = lambda task: None,
    hooks: Hooks = NO_HOOKS,
) -> Learner:
    """Puts one node together. `sigma` and `start` (initial parameters) are computed where they are
    not given; `device` is what `compute.device` says. `generator`: who draws its answers. `attack`:
    what it does to its neighbors. `admit` may refuse the task's data before the ledger hears of the
    run.

    Raises:
        ConfigurationError, DataError, LedgerError: one sentence.
    """
    run = plan.run
    if generator:
        _check_generator(plan)
    task = make(run, data, pick(device))
    x = _initial(task, run, start)
    if run.task.name not in TASKS:
        task.evaluate(x, hooks.yield_point)  # a mistake in it is found before anything is released
    admit(task)
    keys = _keys(run, name, ledger, limit)
    task = attack.on_task(task, run, name) if attack else task
    task = by_unit(task, run.task)
    neighborhood = plan.neighborhoods[name]
    d = task.layout.size
    sigma = plan.sigma(d) if sigma is None else sigma
    releases = plan.algorithm.releases(neighborhood.degree)
    blockwise = Capability.LAYERS in plan.algorithm.NEEDS
    unusable = UnusableRecords(name, unit=run.task.unit)
    gate = make_gate(
        GateConfig(
            privacy=run.privacy,
            me=name,
            run=run.run_id,
            rounds=run.train.rounds,
            releases=releases,
            sigma=sigma,
            seed=run.train.seed,
            full_gradient=not blockwise,
            unit=run.task.unit,
            limit=limit,
            limit_delta=limit_delta,
        ),
        task,
        ledger=ledger,
        keys=keys,
        hooks=replace(hooks, on_unusable=unusable),
    )
    start_digest = _digest(x)
    if not blockwise:
        x = x.to(torch.float32)
    draws = Draws(name, run.train.seed, keys, hooks.yield_point, hooks.warn, generator)
    plan.check_task(task)
    given = resources(plan.algorithm, task, start=x, gradients=gate, draws=draws)
    given = attack.on_resources(given) if attack else given
    room_for_blocks(plan.options, run, task, neighborhood.degree)
    algorithm = plan.algorithm(plan.options, given)
    algorithm = attack.on_algorithm(algorithm, run.train.seed) if attack else algorithm
    algorithm = averaged(algorithm)
    return Learner(
        name=name,
        plan=plan,
        task=task,
        algorithm=algorithm,
        gate=gate,
        ledger=ledger,
        mechanism=release_mechanism(
            run.privacy, d=d, sigma=sigma, releases=releases, unit=run.task.unit
        ),
        sigma=sigma,
        start_digest=start_digest,
        unusable=unusable,
        bounds=Bounds.of(run.limits, run.privacy, sigma=sigma, d=d),
        attack=attack,
    )


def _check_generator(plan: Plan) -> None:
    """Raises ConfigurationError: the run has no use for answers of a server."""
    if not isinstance(plan.options, GrpoConfig):
        raise ConfigurationError(
            f"{plan.run.algorithm.name} draws no answers; leave [generator] out of the node's file."
        )
    if (plan.options.temperature, plan.options.top_p) != (1.0, 1.0):
        raise ConfigurationError(
            "A generation server's log-probabilities are comparable with temperature = 1 and "
            "top_p = 1 only; set these in [algorithm], or leave [generator] out of the node's file."
        )


def _keys(run: RunConfig, name: Peer, ledger: Ledger | None, limit: float | None) -> Keys:
    """Of noise and batches: fresh ones, or those of `privacy.insecure_seed`, under which a ledger
    counts on no noise.

    Raises:
        ConfigurationError: a budget can't be kept with a seed.
        LedgerError: the ledger can't be written.
    """
    seed = run.privacy.insecure_seed
    if seed is None:
        return Keys.fresh()
    if run.privacy.mode != "none" and ledger is not None:
        if limit is not None:
            raise ConfigurationError(
                "privacy.insecure_seed makes the noise public, so budget.epsilon can't be kept; "
                'remove the seed, or set budget.epsilon = "unlimited".'
            )
        ledger.mark(run.run_id, "none")  # anybody who knows the seed can remove the noise
    return Keys.insecure(seed, name)


def _initial(task: Task, run: RunConfig, given: Tensor | None) -> Tensor:
    """The initial parameters, flat [d]: those of `train.start`, or the task's. An own task's
    promises are tried, and `given` (another node's) must be its own.

    Raises:
        DataError: `train.start` can't be used.
        TaskError: a promise is broken.
    """
    own = run.task.name not in TASKS
    if given is not None and not own:
        return given
    x = promises.check(task, run.train.seed) if own else task.initial_parameters(run.train.seed)
    if run.train.start:
        return beginning.parameters(run, task.layout, x.dtype) if given is None else given
    if given is not None and not torch.equal(x.to(given.dtype), given):
        raise TaskError(
            "The task's initial_parameters(seed) gives other values at each node, so they would "
            "not learn one model; draw them from the seed: torch.manual_seed(seed), within "
            "torch.random.fork_rng()."
        )
    return x


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.detach().contiguous().view(torch.uint8).numpy().data).digest()
