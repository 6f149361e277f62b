"""What `peerpoise plan` answers, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from node.cli.budget import number, runs_table, sentence
from node.cli.plan import PrivacyPlan
from node.encoding import Json
from node.privacy.accountant import OTHER_UNIT
from node.records.journal import plain
from node.records.summary import LINK, conditions

WITH_MODEL = "against whoever is given the model"

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def document(plan: PrivacyPlan) -> dict[str, object]:
    """For programs; what is not finite is None."""
    converted: Json = plain({**asdict(plan), "privacy": plan.privacy.model_dump()})
    return converted


def show(plan: PrivacyPlan) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if plan.privacy.mode == "none":
        return Text(plan.silent)
    wanted = "" if plan.target is None else f" for ε_total ≤ {plan.target:g}"
    table = Table(
        "graph",
        "degree",
        "|K|",
        "σ",
        "ε_total",
        "spectral gap",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    table.title = f"What graphs of {plan.nodes} nodes cost{wanted}, under the same conditions"
    for cost in plan.graphs:
        cells = [
            str(cost.degree),
            str(cost.releases),
            f"{cost.sigma:.4g}",
            f"{cost.epsilon:.3g}",
            f"{cost.spectral_gap:.2g}",
        ]
        table.add_row(cost.graph, *cells)
    lines = [*_headline(plan), _meaning(plan), *_lifetime_lines(plan)]
    no = [Text(f"not {kind}: {why}") for kind, why in plan.impossible.items()]
    parts: list[RenderableType] = [*map(Text, lines)]
    if plan.graphs:
        parts += [Text(), table, *no]
    if plan.lifetime and plan.lifetime.runs:
        parts[len(lines) : len(lines)] = [Text(), runs_table(plan.lifetime)]
    if plan.proposals:
        parts += [Text(), _proposals(plan)]
    return Group(*parts)


def _meaning(plan: PrivacyPlan) -> str:
    """What the ε is worth to a known record."""
    known, unit = plan.membership, plan.privacy.unit
    whose = f"all rows of one {unit}" if unit else "one record"
    alone = "" if plan.silent else f"{100 * known.link:.3g} % from one neighbor's answers alone; "
    has = ", has the model" if plan.silent else ""
    return (
        f"What it means: who knows all other data{has}, and suspects {whose} to be there, is right "
        f"about at most {100 * known.total:.3g} % of those that are, when wrong about "
        f"{100 * known.fpr:g} % of those that are not ({alone}{100 * known.fpr:g} % by guessing)"
    )


def _proposals(plan: PrivacyPlan) -> Table:
    from rich.table import Table

    table = Table("T", "q", "B = qn", "K", "σ", "noise", "examples", "MB", box=None, pad_edge=False)
    table.title = (
        f"What else could be done for ε_total ≤ {plan.target:g} with the same compute; noise: "
        "σ/(qn√T), that of all steps together against all that they can move a model"
    )
    table.title_justify = "left"
    for proposal in plan.proposals:
        table.add_row(
            str(proposal.rounds),
            f"{proposal.rate:.4g}",
            str(proposal.batch),
            "–" if proposal.gossip is None else str(proposal.gossip),
            f"{proposal.sigma:.4g}",
            f"{proposal.noise:.3g}",
            f"{proposal.examples:.3g}",
            "–" if proposal.megabytes is None else f"{proposal.megabytes:.3g}",
        )
    table.caption = (
        "Set train.rounds = T, privacy.rate = q, privacy.batch = B (n = B/q has to stay what it "
        "is) and algorithm.gossip = K. The less noise the better, as long as there are rounds "
        "enough to learn in; peerpoise sweep tells."
    )
    table.caption_justify = "left"
    return table


def _headline(plan: PrivacyPlan) -> Iterator[str]:
    cost, privacy = plan.cost, plan.privacy
    if plan.silent:
        yield plan.silent
        yield (
            f"σ = {cost.sigma:.4g}: ε_total = {cost.epsilon:.3g} "
            f"({conditions(privacy, WITH_MODEL)})"
        )
    else:
        yield from _costs(plan)
    if privacy.warning and privacy.warning not in plan.doubts:
        yield f"! {privacy.warning}"
    for doubt in plan.doubts:
        yield f"! {doubt}"


def _costs(plan: PrivacyPlan) -> Iterator[str]:
    """Of an algorithm that talks."""
    cost, privacy = plan.cost, plan.privacy
    where = f"{cost.graph} of {plan.nodes} nodes" if cost.graph else "any graph"
    yield (
        f"{plan.algorithm}, {where}, {cost.degree} neighbors at most: |K| = {cost.releases} "
        f"releases a round, {plan.rounds} rounds, q = {plan.rate:g}"
    )
    yield f"σ = {cost.sigma:.4g}: ε_total = {cost.epsilon:.3g} ({conditions(privacy)})"
    yield f"ε_link = {privacy.epsilon.link or 0:.3g} (one neighbor alone, same conditions; {LINK})"


def _lifetime_lines(plan: PrivacyPlan) -> Iterator[str]:
    lifetime = plan.lifetime
    if lifetime is None:
        return
    yield sentence(lifetime)
    if lifetime.other_unit:
        yield f"! {OTHER_UNIT}"
    if lifetime.limit is not None:
        yield (
            f"Limit {lifetime.limit:g}: {lifetime.rounds_left} of the {plan.rounds} rounds of this "
            "run can release."
        )
    if lifetime.delta != plan.privacy.delta:
        yield (
            f"! The run's ε_total is at another δ than that of its data: at δ = {lifetime.delta:g} "
            f"it is {number(lifetime.planned)}."
        )
