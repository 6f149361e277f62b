"""Dec-LoRA: only low-rank adapters are trained, with Adam, and averaged between neighbours. A baseline of DECA.

Hu et al., "LoRA", arXiv 2106.09685; averaged as in DSGD-Adam, of which this is the name on adapters: the frozen model
never travels. A and B are averaged each for itself, not their product.

Not covered
    * A task without adapters; its one-sentence refusal names the option that makes them.
"""

from __future__ import annotations

from typing import ClassVar

from node.algorithms.dsgd_adam import DsgdAdam


class DecLora(DsgdAdam):
    adapted: ClassVar[bool] = True
