"""What an algorithm's own configuration has besides its fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from node.config.section import Section
from peer.neighborhood import Neighborhood


class AlgorithmConfig(Section):
    """The options of an algorithm: `[algorithm]` of a run file, but its name."""

    def on_graph(self, spectral_gap: float, nodes: int) -> Self:
        """These options on a graph of so many nodes, with what follows from it filled in.

        Raises:
            ConfigurationError: the algorithm does not work on such a graph.
        """
        return self

    def on_run(self, rounds: int) -> Self:
        """These options in a run of so many rounds, with what follows from that filled in."""
        return self

    def check_families(self, generators: Sequence[str], scored: Sequence[str]) -> None:
        """Of a task whose answers are rewarded: `generators` are families of questions that every
        node can make, `scored` those of them where a scorer says what is right.

        Raises:
            ConfigurationError: these options don't suit such questions.
        """


class PaperCalibrated(AlgorithmConfig):
    """Options of an algorithm whose paper has a formula for the noise: it knows mode paper."""

    @abstractmethod
    def paper_sigma(
        self, receiver: Neighborhood, *, rate: float, rounds: int, epsilon: float, delta: float
    ) -> float:
        """The noise multiplier that the paper's formula gives for what is sent to a receiver.

        Args:
            rate: q, the share of the receiver's examples in a batch.
            rounds: T.
        """
