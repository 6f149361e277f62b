"""`[task]`: what is learned, from which data, by which model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from node.config.features import Feature, Finite
from node.config.section import Section
from node.config.templates import fields

BUNDLED_TASKS = ("causal-lm", "classification", "reasoning", "regression")
"""Those whose code is ours."""
SUPERVISED = ("classification", "regression")
"""Those whose models are in node/models."""


def adjacency(unit: str) -> str:
    """Which data sets count as neighbors: what stands beside every ε. `unit` as in `[task]`."""
    return f"add/remove all rows of one {unit}" if unit else "add/remove one example"


class TextSection(Section):
    """Of causal-lm: how a row of text becomes tokens, and which part of the model is trained
    (docs/language-models.md).
    """

    template: str = "plain"
    """The text before the answer. plain: none, or the `prompt` columns. instruction: these columns
    as an instruction. chat: these as the user's message in the model's own template. Or a text with
    {column} fields, where an empty cell is an empty string and {{ and }} stand for braces."""
    prompt: tuple[str, ...] = ()
    """Columns of the prompt, one below the other."""
    answer: str = "text"
    """The column that is learned; it may not be empty in any row. For a text that is not there, the
    column messages of a chat data set will do. Of a conversation (a list of
    {role, content}) the last assistant turn is learned, and the turns before are the prompt. Only
    the answer's tokens and the end of the sequence are labels; the rest is masked. With
    task.labels, a model is evaluated on it: the label with the lowest loss is its answer."""
    length: int = Field(default=128, ge=2)
    """Tokens of a sequence. A longer one is cut: the answer keeps half or more and loses its end,
    the prompt loses its beginning."""
    piece: int = Field(default=400, ge=16)
    """Plain text files: largest number of characters of a row."""
    test: Path | None = None
    """data = "file": a PUBLIC file of the same form to test on; None: a fifth of the rows."""
    test_size: int | None = Field(default=None, ge=1)
    """Evaluate on this many rows of the test set, equally many of each class (language, file);
    None: on all.
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which weights are stored and computed. bfloat16 halves memory; only for algorithms
    that keep what they train in float32 (deca, badam, dsgd-adam, dec-lora), because bfloat16 rounds
    small steps away. On an NVIDIA GPU it is trained under torch's autocast."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Sequences per forward and backward pass; None: the whole batch."""
    embeddings: bool = False
    """Train the parameters outside of the layers, too: embeddings, last norm, head."""
    lora_rank: int = Field(default=0, ge=0)
    """Above 0 only adapters of this rank (LoRA) beside the layers' linear maps are trained and
    sent.
    """
    lora_alpha: float = Field(default=16.0, gt=0)
    """Adapters are scaled by lora_alpha/lora_rank."""
    digest: str = ""
    """SHA-256 (hex) of the model and of public texts; written by `up` and `pack`, compared with
    each node's copies.
    """

    @field_validator("digest")
    @classmethod
    def _is_ours(cls, value: str) -> str:
        if not re.fullmatch("([0-9a-f]{64}:[0-9a-f]{64})?", value):
            raise ValueError(
                "another version of peerpoise wrote it; write run.toml again (pack, or up)"
            )
        return value

    @model_validator(mode="after")
    def _gives_no_answer(self) -> TextSection:
        if self.answer in self.prompt or self.answer in fields(self.template):
            raise ValueError(
                f"the column {self.answer!r} is the answer, so that prompt and template can't show "
                "it"
            )
        return self


OWN_FAMILY = "own"
"""Of questions that come from a file."""
OWN_PREFIX = "own:"
"""Of the names of families that are somebody's own code."""


class ReasoningSection(Section):
    """Of reasoning: which questions there are, and what answers earn (docs/reasoning.md)."""

    families: tuple[str, ...] = Field(
        default=("add-seven", "largest", "reverse", "sort"), min_length=1
    )
    """task.data = "questions": their families, made from seeds: add, add-seven, largest, reverse,
    sort, subtract; gym:NAME of reasoning-gym (pip install 'peerpoise[rl]'); or your own,
    own:package.module or, on this machine only, own:FILE.py."""
    match: Literal["exact", "numeric"] = "exact"
    """How an answer is compared with the right one: as text, or as a number where both are one."""
    scorer: str = ""
    """Questions of a file: your own function `score` says what is right in place of match,
    own:package.module or, on this machine only, own:FILE.py. Empty: the right answer alone is."""
    stop: tuple[str, ...] = ()
    """Texts (or one) that end an answer, as the model's end token does; what stands before is it.
    Right answers are learned, and audited, with the first of them in place of that token."""
    reward_scale: dict[str, tuple[float, float]] = {}
    """Family = [factor, offset]: a reward r of it counts as factor · r + offset, as owners of
    different tasks pay on different scales."""

    @property
    def own(self) -> tuple[str, ...]:
        """What is somebody's own code: families, and a scorer."""
        named = (*self.families, *filter(None, [self.scorer]))
        return tuple(name for name in named if name.startswith(OWN_PREFIX))

    def scale(self, family: str) -> tuple[float, float]:
        """(factor, offset) of a family's rewards."""
        return self.reward_scale.get(family, (1.0, 0.0))

    @model_validator(mode="after")
    def _one_says_what_is_right(self) -> ReasoningSection:
        if self.scorer and not self.scorer.startswith(OWN_PREFIX):
            raise ValueError("scorer is own:package.module or own:FILE.py")
        if self.scorer and self.match != "exact":
            raise ValueError("scorer and match both say what is right; leave one of them out")
        return self

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _ends_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty text ends every answer before it begins; leave it out")
        if any("\ud800" <= character <= "\udfff" for text in value for character in text):
            raise ValueError("a text to stop at is no UTF-8")
        return value

    @model_validator(mode="after")
    def _scales_are_used(self) -> ReasoningSection:
        if unused := sorted({*self.reward_scale} - {*self.families, OWN_FAMILY}):
            raise ValueError(f"reward_scale names {unused[0]!r}, which is none of families")
        scales = self.reward_scale.items()
        if bad := [
            name for name, (a, b) in scales if not (1e-30 <= a <= 1e30 and abs(b) <= 1e5 * a)
        ]:
            raise ValueError(
                f"the scale of {bad[0]!r} in reward_scale is a positive factor and an offset of at "
                "most 100,000 times it, beyond which float32 rounds differences away"
            )
        return self


class TaskSection(Section):
    name: str = "classification"
    """classification | regression (of tables) | causal-lm (a language model; needs the extra llm) |
    reasoning (one that answers questions and is rewarded), or your own:
    "package.module:function" or, on this machine only, "FILE.py:function" (docs/own-task.md). Its
    code sees the private data."""
    data: str = "digits"
    """digits | mnist | fashion-mnist | cifar-10 | torchvision:NAME, and, as text, fortunes: public
    sets, divided among the nodes (see $PEERPOISE_DATA). file: the PUBLIC file `path`, divided, too.
    own: each node's data.path."""
    path: Path | None = None
    """data = "file": .npz, .csv, .tsv, .parquet or a folder of images; with [task.text] .parquet,
    .csv, .tsv, .jsonl, .json, .txt or a folder of such (docs/data.md). A
    relative path is looked for beside this file."""
    held_out: bool = False
    """Public sets: a fifth of every class of the TRAINING examples is held out and replaces the
    test set. For choosing a learning rate, which must not be done on the test set."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order: subfolders of images, values of a table's label column.
    Empty: integers.
    """
    label: str = "label"
    """A table's column of labels, or of the numbers that a regression learns."""
    target: tuple[Finite, Annotated[Finite, Field(gt=0)]] | None = None
    """Of regression: [center, scale], PUBLIC; (label − center)/scale is learned, and metrics are in
    the label's own unit."""
    features: dict[str, Feature] = {}
    """A table's columns to learn from, each by its kind: number, category, date or ignore
    (Columns of a table, below). name = [center, scale] is a number; all constants are PUBLIC.
    `peerpoise schema FILE.csv` proposes them."""
    bad_rows: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of a table's rows that may be skipped, each with a reason that is counted on
    this host's standard error and by `doctor`: a cell that is no number, no such category, no
    label. A node with more does not start, which others see."""
    unit: str = ""
    """The privacy unit: whom ε protects. Empty: one example. Or what names the person, device or
    hospital that a row is of, so that all rows of one are protected together: a column of a table
    or of texts, an array of the .npz, "folder" for the folders that images lie in below their
    class (docs/data.md). Persons are then drawn into batches, their rows' gradients averaged and
    clipped, and q, B and max_examples count persons. It is never learned from and never leaves
    the host."""
    rows_per_unit: int = Field(default=8, ge=1)
    """With unit: at most this many of a person's rows are in a batch, drawn anew each time. Each
    person costs the time of so many."""
    channels: Literal[1, 3] = 3
    """Folders of images: 1 makes them gray."""
    model: str = "softmax"
    """softmax | mlp | lenet | cnn and cnn-cifar (the papers', for 1×28×28 and 3×32×32) | resnet8.
    Of causal-lm: bytes (a million parameters, from scratch) | smollm2 | a folder or .gguf file | a
    name of the Hugging Face hub."""
    hidden: int = Field(default=64, ge=1)
    """Width of the MLP's hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of cnn-cifar (0.4 in the authors' code). Above 0, gradients depend on a random mask, so runs
    don't repeat bit for bit; noised ones are computed by the slower loop, with a separate mask for
    each record from the secret stream."""
    image_size: int | None = Field(default=None, ge=4, le=512)
    """Images are scaled (bilinear) to this many pixels a side; None leaves arrays as they are.
    Required for folders of images, which may have any size."""
    mean: tuple[float, ...] = ()
    """Images, by channel: the model is fed (x − mean)/std, x in 0 … 1. PUBLIC constants, such as
    the published ones of a data set: those of private data would reveal something about them.
    Empty: x as it is."""
    std: tuple[float, ...] = ()
    """See mean; equally many."""
    transform: Literal["", "scattering"] = ""
    """scattering: the model is fed fixed wavelet coefficients of images (after mean and std), 81
    for each channel at every fourth pixel, normalized image by image: features that nobody has to
    learn, so that a softmax regression does what takes pixels a deep model."""
    whiten: float | None = Field(default=None, ge=1e-6, le=1)
    """The model, softmax or mlp, is fed images (after transform) in coordinates in which those of
    the validation set vary alike in every direction, so that noise drowns none of them. Directions
    of less than this share of the largest variance are scaled up as if they had it, and those of
    none are left out; 0.005 suits scattering, 0.05 pixels. None: as they are. Needs a validation
    set that is public."""
    value_range: tuple[float, float] | None = None
    """[low, high], PUBLIC: the range of everything the model is fed, of images (uint8 counts as 0 …
    1) before mean and std, of a table's features after centering and scaling; a node refuses data
    outside it. Nodes with integers match nodes with floats in [0, 1] only. None: floats beyond ±20
    are refused.
    """
    classes: int = Field(default=10, ge=2)
    """Number of labels, 0 … classes − 1; as many as labels names, if it does."""
    text: TextSection | None = None
    """The data are text."""
    reasoning: ReasoningSection | None = None
    """The data are questions with right answers."""

    @property
    def own_code(self) -> tuple[str, ...]:
        """Names of what runs here and is not ours: the task, and families of questions."""
        task = () if self.name in BUNDLED_TASKS else (self.name,)
        return (*task, *(self.reasoning.own if self.reasoning else ()))

    @property
    def adjacency(self) -> str:
        """Of every ε of a run of this task."""
        return adjacency(self.unit)

    @property
    def per_row(self) -> TaskSection:
        """The same without a unit: for test and validation sets, which ε does not speak of."""
        return self.model_copy(update={"unit": ""})

    @property
    def _learned(self) -> set[str]:
        """The columns that a model sees, and what it is to say of them."""
        named = {name for name, feature in self.features.items() if feature.width}
        if self.text is None:
            return {*named, self.label}
        return {*named, self.text.answer, *self.text.prompt, *fields(self.text.template)}

    @property
    def outputs(self) -> int:
        """Of a model, for one example."""
        return 1 if self.target else self.classes

    @model_validator(mode="before")
    @classmethod
    def _labels_are_the_classes(cls, values: object) -> object:
        """Where labels are named and classes is not, there are as many."""
        if not isinstance(values, Mapping) or "classes" in values:
            return values
        labels = values.get("labels")
        if not labels or not isinstance(labels, list | tuple):
            return values
        if len(labels) == 1:
            raise ValueError("labels has to name two labels, or more")
        return {**values, "classes": len(labels)}

    @model_validator(mode="after")
    def _as_many_labels(self) -> TaskSection:
        if self.labels and len(set(self.labels)) != self.classes:
            raise ValueError(
                f"labels names {len(set(self.labels))} classes, but classes is {self.classes}"
            )
        if (self.name == "regression") != (self.target is not None):
            raise ValueError(
                'target = [center, scale] of the label belongs to name = "regression", which needs '
                "it"
            )
        if self.features.get(self.label) and self.features[self.label].width:
            raise ValueError(f"{self.label!r} is the label, so that it can't be a feature")
        if self.unit and self.unit in self._learned:
            raise ValueError(
                f"{self.unit!r} is the privacy unit, so that it can't be learned from; leave it out"
            )
        if self.unit and self.name == "reasoning":
            raise ValueError("reasoning has no differential privacy, so leave unit out")
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(
                "mean and std need as many figures each, and those of std must be positive"
            )
        no_images = self.features or self.text or self.reasoning
        for name, given in (("transform", self.transform), ("whiten", self.whiten)):
            if given and no_images:
                raise ValueError(f"{name} is for images")
            if given and self.own_code:
                raise ValueError(f"{name} is for tasks of ours; {self.name} makes its own features")
        if self.whiten and self.model not in ("softmax", "mlp"):
            raise ValueError(
                f"whiten leaves no picture that {self.model} could look at; take the model softmax "
                "or mlp"
            )
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range is [low, high], and low must be below high")
        return self
