"""The audit `inversion`: images that a neighbor reads from gradients, side by side with the records
(`node.audit.inversion`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from node.audit import Finding, Options, Picture, Unfit
from node.audit.inversion import Attack, Inversion, invert
from node.experiments.report.tables import Grid
from node.experiments.resolve import ResolvedRun
from peer.errors import ConfigurationError

ATTACKS: Sequence[tuple[Attack, int]] = (("trap", 1), ("trap", 8), ("optimized", 1))
"""Which attack, and how many records the owner has."""
RECORDS, FEW = 32, 8
STEPS, FEW_STEPS = 300, 100
MOST, PROMISING = 0.2, 10.0
"""A run of an ε_total no larger than this allows nobody to recover so many of the records; of a
larger one nothing is concluded."""
SCALE = 4
"""Pixels of the page for one of the image, both ways."""


def audit(resolved: ResolvedRun, options: Options) -> Sequence[Finding]:
    """Raises:
    Unfit: these data or this model are none that the attacks know.
    """
    try:
        results = [*_attacked(resolved, options)]
    except ConfigurationError as error:
        raise Unfit(str(error)) from None
    task = resolved.run.task
    document = {"inversion": [_document(each) for each in results], "adjacency": task.adjacency}
    claimed = resolved.plan.epsilon
    promising = claimed is not None and claimed <= PROMISING
    broken = tuple(_sentence(each) for each in results if promising and each.share > MOST)
    pictures = tuple(_picture(each) for each in results)
    return [
        Finding(
            table=_grid(results, task.unit), document=document, broken=broken, pictures=pictures
        )
    ]


def _attacked(resolved: ResolvedRun, options: Options) -> Iterator[Inversion]:
    records, steps = (FEW, FEW_STEPS) if options.quick else (RECORDS, STEPS)
    for attack, batch in ATTACKS:
        options.say(f"inversion: {attack}, {batch} of the owner's records at a time")
        yield invert(resolved, attack, batch=batch, records=records, seed=options.seed, steps=steps)


def _sentence(result: Inversion) -> str:
    return (
        f"A neighbor could read {result.recovered} of {result.records} images from the gradients "
        f"that it was sent ({result.attack}, {result.batch} at a time)."
    )


def _document(result: Inversion) -> dict[str, object]:
    tensors = ("originals", "guesses")
    return {name: value for name, value in asdict(result).items() if name not in tensors}


def _grid(results: Sequence[Inversion], unit: str) -> Grid:
    each_has = (f"each value of {unit} has one of the records",) if unit else ()
    rows = tuple(
        (
            f"{each.attack}, {each.batch} at a time",
            str(each.rounds),
            f"{each.recovered} of {each.records}",
            f"{each.correlation:.2f}",
            f"{each.chance:.2f}",
            f"{each.auc:.2f}",
        )
        for each in results
    )
    return Grid(
        title=f"Inversion, mode {results[0].mode}: which images can a neighbor read?",
        head=("attack", "answers", "recovered", "correlation", "chance", "AUC"),
        rows=rows,
        notes=(
            "the owner has these records only, and the neighbor chooses the model; recovered: "
            "correlation above 0.99; chance: of records that the gate never saw",
            *each_has,
        ),
    )


def _picture(result: Inversion) -> Picture:
    """Records above, what was made of them below."""
    rows = torch.stack((result.originals, result.guesses))  # [2, k, channels, height, width]
    gray = rows.mean(2)
    low, high = gray.amin((2, 3), keepdim=True), gray.amax((2, 3), keepdim=True)
    shades = (gray - low) / (high - low).clamp(min=1e-9)
    framed = torch.nn.functional.pad(shades, (1, 1, 1, 1), value=1.0)
    sheet = torch.cat([torch.cat([*row], dim=1) for row in framed])
    large = sheet.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
    title = f"{result.attack}, {result.batch} at a time: records above, guesses below"
    return Picture(title=title, png=png((large * 255).round().to(torch.uint8)))


def png(shades: Tensor) -> bytes:
    """An image of gray values, uint8 [height, width], as a PNG file (ISO/IEC 15948)."""
    height, width = shades.shape
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(row.tolist()) for row in shades)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
