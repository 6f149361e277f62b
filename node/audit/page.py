"""What audits found: as one HTML file with nothing outside of it, and as JSON."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from datetime import date

import tomli_w

from node.audit import Findings, Options, Picture
from node.config import ExperimentConfig, drop_none
from node.encoding import Json
from node.experiments.report import page
from node.records.journal import code_version

HELD = "No attack saw more than the run promises. That is no proof: it says what these attacks saw."
UNTRIED = "None of the attacks can be made of this run, so nothing is known; each says why."
NOT_MADE = "Not made: {names}."
NOTHING = "This run promises nothing (mode {mode}); what the attacks saw is above."


def broken(findings: Findings) -> list[str]:
    """Why the run does not keep what it promises: the sentences of all audits."""
    return [text for each in findings.values() for finding in each for text in finding.broken]


def document(config: ExperimentConfig, findings: Findings) -> Json:
    """For programs."""
    return {
        "run": config.run.name,
        "algorithm": config.algorithm.name,
        "mode": config.privacy.mode,
        "adjacency": config.task.adjacency,
        "failed": broken(findings),
        "verdict": verdict(config, findings),
        "audits": {name: [it.document for it in each] for name, each in findings.items()},
    }


def html_page(config: ExperimentConfig, findings: Findings, options: Options) -> str:
    """The whole file."""
    parts = "".join(_parts(config, findings, options))
    return page.framed(f"Audit of {config.run.name}", parts)


def verdict(config: ExperimentConfig, findings: Findings) -> str:
    """In a sentence or some."""
    reasons = broken(findings)
    if reasons:
        return f"FAILED: {' '.join(reasons)}"
    left_out = not_made(findings)
    if len(left_out) == len(findings):
        return UNTRIED
    mode = config.privacy.mode
    sentences = [HELD if mode == "strict" else NOTHING.format(mode=mode)]
    sentences += [NOT_MADE.format(names=", ".join(left_out))] * bool(left_out)
    return " ".join(sentences)


def not_made(findings: Findings) -> list[str]:
    """The audits that can't be made of this run."""
    return [name for name, each in findings.items() if not any(it.made for it in each)]


def _parts(config: ExperimentConfig, findings: Findings, options: Options) -> Iterator[str]:
    yield f"<p>{page.escape(verdict(config, findings))}</p>\n"
    yield f"<p>An ε of this run is of: {page.escape(config.task.adjacency)}.</p>\n"
    made = f"Made on {date.today()} with peerpoise {code_version()}, seed {options.seed}"
    yield f"<p>{page.escape(made)}{', quick and weaker' if options.quick else ''}: "
    yield f"{page.escape(', '.join(findings))}.</p>\n"
    for each in findings.values():
        for finding in each:
            yield page.table(finding.table)
            if finding.pictures:
                pictures = "".join(map(_figure, finding.pictures))
                yield f'<div class="figures">\n{pictures}</div>\n'
    settings = html.escape(tomli_w.dumps(drop_none(config.model_dump(mode="json"))))
    yield f"<details><summary>Configuration</summary><pre>{settings}</pre></details>\n"


def _figure(picture: Picture) -> str:
    title, data = page.escape(picture.title), base64.b64encode(picture.png).decode()
    return (
        f'<figure><figcaption>{title}</figcaption><img alt="{title}" '
        f'src="data:image/png;base64,{data}"></figure>\n'
    )
