"""Doors, clusters and losses for the conformance suite: fast, deterministic, keyed by (node, round,
recipient).
"""

import dataclasses
import hashlib
import random
from collections import defaultdict
from typing import Any

import torch

from node.algorithms import ALGORITHMS, Resources, find
from node.learning.averaged import averaged
from node.maths.mixing import materialize
from node.maths.policy import Completions, PolicyGradient, Prompts, Rollouts
from node.rounds import lockstep
from peer.message import Layout, Withheld, step
from peer.topology import make_neighborhoods

LAYOUT = Layout((("weight", (3, 4)), ("bias", (5,))))
STAGES = (("weight",), ("bias",))
D = LAYOUT.size
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ross": [
        {},
        {"value": "neg_loss", "normalization": "minmax", "smoothing": 0.5, "mix_momentum": False},
    ],
    "dpdl": [
        {"lr": 0.02},
        {"lr": 0.02, "granularity": "tensor", "scale": "normalized", "decay_every": 2},
    ],
    "qg-dsgdm": [{}, {"mu": 0.0}],
    "net-fleet": [{}, {"restart": 1, "mix_steps": True}, {"restart": 3}],
    "deca": [
        {"lr": 0.8, "steps": 2, "layers_per_block": 1},
        {"lr": 0.8, "steps": 3, "layers_per_block": 1, "bma": "scaled", "mix_every": 2},
        {"lr": 0.8, "layers_per_block": 2, "bma": "none"},
        {
            "lr": 0.8,
            "layers_per_block": 2,
            "bma": "none",
            "wire": "bf16-delta",
            "decay": "cosine",
            "warmup": 2,
        },
    ],
    "badam": [{"lr": 0.8, "steps": 2, "layers_per_block": 1}],
    "dsgd-adam": [{"lr": 0.3}],
    "dec-lora": [{"lr": 0.3}],
    "fgrpo": [
        {"lr": 0.3, "local_steps": 1, "audit": {"questions": 2}},
        {"lr": 0.3, "gain": "reported", "block": {"steps": 2, "layers_per_block": 1}},
    ],
    "grpo": [{"lr": 0.3, "local_steps": 1}],
    "sapo": [{"lr": 0.3, "local_steps": 1}],
    "muffliato": [
        {"gossip": 1, "spectral_gap": 1.0},
        {"gossip": 3, "spectral_gap": 0.4},
        {"gossip": 2, "spectral_gap": 0.4, "average": 0.5},
    ],
}
"""Variants of a configuration that are tried; one with the defaults where none are named."""
GOSSIPING = ("deca", {"bma": "none", "layers_per_block": 2, "lr": 0.8})
"""Of DECA's: the one that only mixes when gradients are zero. A signal moves the others; changes
mix no θ.
"""
VARIANTS = [(name, options) for name in sorted(ALGORITHMS) for options in OPTIONS.get(name, [{}])]
TALKING = [
    variant
    for variant in VARIANTS
    if variant[0] not in ("local", "centralized", "public", "badam", "grpo")
]


def stream(*key):
    """A generator of its own for every key."""
    return torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    )


class Toy:
    """∇ ½‖x − c‖² plus noise of its own for every (node, round, recipient); own = the release to
    oneself.

    Anything else an algorithm looks for behind the gate is an error.
    """

    __slots__ = ("_me", "_noise", "_served", "_wanted")

    def __init__(self, me, noise=0.1):
        self._me, self._noise, self._served = me, noise, defaultdict(set)
        self._wanted = torch.randn(D, generator=stream(me))

    def __call__(self, x, t, to):
        self._served[t].add(to)
        return (
            x
            - self._wanted.to(x.dtype)
            + self._noise * torch.randn(D, generator=stream(self._me, t, to))
        )

    def own(self, x, t):
        return self(x, t, self._me)

    def difference(self, x, before, t):
        """As in mode strict: a release with noise of its own."""
        self._served[t].add(self._me)
        return (
            x - before + self._noise * torch.randn(D, generator=stream(self._me, t, "difference"))
        )

    def within(self, x, block):
        def gradient(theta, t):
            whole = x.clone()
            whole[block.span] = theta
            return self(whole, t, self._me)[block.span]

        return gradient


class Still(Toy):
    """Zero gradients: what is left is gossip."""

    __slots__ = ()

    def __call__(self, x, t, to):
        return torch.zeros_like(x)

    def difference(self, x, before, t):
        return torch.zeros_like(x)


class Stingy(Toy):
    """Withholds every answer to a neighbor."""

    __slots__ = ()

    def __call__(self, x, t, to):
        if to != self._me:
            raise Withheld
        return super().__call__(x, t, to)


class DistanceUtility:
    """Values a model by its distance from the origin, whatever the kind."""

    def around(self, x, moves, kind):
        return lambda shares: [
            -float((x + share.to(x.dtype) @ moves.to(x.dtype)).norm()) for share in shares
        ]

    def gradient(self, x):
        return x / x.norm()

    def now(self):
        return 0.0


class ToyPolicy:
    """Questions are points: the nearer a model is, the likelier is the right answer. What a step
    earns is drawn, and its gradient is the gate's.
    """

    families: tuple[str, ...] = ("points",)
    evaluation, questions, vocabulary = bytes(32), 8, 256
    tokens_read = scorer_failures = 0

    def __init__(self, me, gate):
        self._me, self._gate = me, gate

    def rollouts(self, x, config, t, step):
        n = config.questions * config.num_generations
        ids, mask = torch.full((n, 1), t), torch.ones(n, 1, dtype=torch.int64)
        right = torch.rand(n, generator=stream("rewards", self._me, t, step)) < 0.5
        return Rollouts(
            prompts=Prompts(ids, mask),
            completions=Completions(ids, mask, torch.zeros(n, 1), right),
            rewards=right.float(),
            exact=right,
            seconds=1.0,
        )

    def gradient(self, x, rollouts, config, advantages, reference=None, *, on_policy=True):
        t = int(rollouts.prompts.ids[0, 0])
        figures = dict.fromkeys(
            ("entropy", "clip_low", "clip_high", "kl", "zero_spread", "mismatch", "seconds"), 1.0
        )
        return PolicyGradient(gradient=self._gate(x, t, self._me), **figures)

    def reward(self, x):
        return float(self.fixed(x).mean())

    def fixed(self, x):
        return self.right(x, self.families, 0, 8)

    def audit_seed(self, t, commitment):
        return t

    def knows(self, families):
        return tuple(families) == self.families

    def right(self, x, families, seed, count):
        points = torch.randn(count, D, generator=stream("points", seed))
        return 1 / (1 + (x.float() - points).norm(dim=1).double())


def cluster(variant, kind="full", n=4, gate=Toy, start=None):
    """(nodes, neighborhoods) of the variant, all starting at `start` or, each at its own, at random."""
    name, options = variant
    algorithm = find(name)
    neighborhoods = make_neighborhoods(kind, [f"n{i}" for i in range(n)])
    nodes = {}
    for i in neighborhoods:
        x = torch.randn(D, generator=stream("start", i)) if start is None else start
        resources = Resources(
            me=i,
            layout=LAYOUT,
            start=x,
            gradients=gate(i),
            utility=DistanceUtility(),
            layer_groups=STAGES,
            policy=ToyPolicy(i, gate(i)),
        )
        nodes[i] = averaged(algorithm(algorithm.Config(**options), resources))
    return nodes, neighborhoods


def results(nodes):
    return torch.stack([nodes[i].parameters for i in sorted(nodes)])


def lossy(seed, share=0.3):
    """Loses that share of what is said, in one direction at a time."""
    return lambda t, phase, sender, receiver: (
        random.Random(f"{seed} {t} {phase} {sender} {receiver}").random() < share
    )


class Listened:
    """An algorithm whose conversation is noted: (round, type, kind, layout, shapes) of each verb,
    and what was said.
    """

    def __init__(self, algorithm):
        self.algorithm, self.verbs, self.said = algorithm, defaultdict(list), []

    def round(self, t, view):
        talk, heard = self.algorithm.round(t, view), None
        while (verb := step(talk, heard)) is not None:
            verb = dataclasses.replace(verb, tensors=materialize(verb.tensors))
            parts = verb.tensors if isinstance(verb.tensors, tuple) else (verb.tensors,)
            self.said.extend(part.clone() for part in parts)
            self.verbs[t].append(
                (type(verb), verb.kind, verb.layout, tuple(part.shape for part in parts))
            )
            heard = yield verb

    def __getattr__(self, name):
        return getattr(self.algorithm, name)


def simulated(variant, kind, n=4, rounds=6, **more):
    nodes, neighborhoods = cluster(variant, kind, n, **more)
    lockstep.run(nodes, neighborhoods, rounds)
    return results(nodes)
