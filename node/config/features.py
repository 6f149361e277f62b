"""`[task.features]`: what a table's columns become. Everything in it is public and the same at all
nodes, so that no private row decides a width, a list of categories or a scale.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from node.config.section import Section

Part: TypeAlias = Literal["year", "month", "day", "weekday", "hour"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class NumberFeature(Section):
    """A number is learned as (value − center)/scale. Short form: [center, scale]."""

    kind: Literal["number"] = "number"
    center: Finite
    """PUBLIC: what counts as 0, such as the middle of a reference range."""
    scale: Finite = Field(gt=0)
    """PUBLIC: what counts as 1, such as a usual deviation from center."""
    missing: Finite | None = None
    """What an empty cell stands for, in the column's own unit; None: a row without it is bad."""
    flag: bool = False
    """Adds an input that is 1 where the cell was empty, otherwise 0; needs missing."""
    clip: Finite | None = Field(default=None, gt=0)
    """After scaling, what is beyond ±clip counts as ±clip; None: a row with a value outside of
    task.value_range, or beyond ±20, is bad."""

    @model_validator(mode="after")
    def _flag_needs_missing(self) -> NumberFeature:
        if self.flag and self.missing is None:
            raise ValueError("flag needs missing: what an empty cell stands for")
        return self

    @property
    def width(self) -> int:
        """Inputs of the model that the column becomes."""
        return 1 + self.flag

    @property
    def words(self) -> str:
        """What nodes compare in the handshake."""
        given = [f"missing {self.missing}"] if self.missing is not None else []
        given += ["flag"] if self.flag else []
        given += [f"clip {self.clip}"] if self.clip else []
        return ", ".join([str(self.center), str(self.scale), *given])


class CategoryFeature(Section):
    """A category is learned as one input for each of values: 1 for its own, otherwise 0."""

    kind: Literal["category"]
    values: tuple[str, ...] = Field(min_length=1)
    """PUBLIC: all categories, in order; also those that some node does not have."""
    unknown: Literal["slot", "error"] = "error"
    """Any other cell, and an empty one. slot: one more input is 1. error: the row is bad."""

    @field_validator("values")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice; leave one")
        return values

    @property
    def width(self) -> int:
        return len(self.values) + (self.unknown == "slot")

    @property
    def words(self) -> str:
        return " | ".join([*self.values, *(["any other"] if self.unknown == "slot" else [])])


class DateFeature(Section):
    """A date is learned by its parts: year as (year − 2000)/10, all others as sine and cosine, so
    that December is beside January."""

    kind: Literal["date"]
    parts: tuple[Part, ...] = Field(min_length=1)
    """year | month | day (of the month) | weekday | hour."""
    format: str = ""
    """How it is written, as Python's strptime has it, e.g. "%d.%m.%Y"; empty: ISO 8601."""
    flag: bool = False
    """Adds an input that is 1 where the cell was empty, whose parts are 0; otherwise such a row is
    bad."""

    @field_validator("parts")
    @classmethod
    def _each_once(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError("a part is there twice; leave one")
        return parts

    @property
    def width(self) -> int:
        return sum(1 if part == "year" else 2 for part in self.parts) + self.flag

    @property
    def words(self) -> str:
        return ", ".join([*self.parts, *(["flag"] if self.flag else [])])


class IgnoredFeature(Section):
    """A column that is known and not learned from; a file need not have it."""

    kind: Literal["ignore"]

    @property
    def width(self) -> int:
        return 0

    @property
    def words(self) -> str:
        return "ignored"


def _long_form(value: object) -> object:
    """[center, scale] as a number's section."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError('[center, scale] or {kind = "…"} is expected')
        return {"kind": "number", "center": value[0], "scale": value[1]}
    return value


AnyFeature: TypeAlias = NumberFeature | CategoryFeature | DateFeature | IgnoredFeature
Feature = Annotated[Annotated[AnyFeature, Field(discriminator="kind")], BeforeValidator(_long_form)]
"""One column, by its kind."""
KINDS: tuple[type[AnyFeature], ...] = (NumberFeature, CategoryFeature, DateFeature, IgnoredFeature)
