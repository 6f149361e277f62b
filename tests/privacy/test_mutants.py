"""Broken versions of what private records pass through, and the tests that notice each of them.

A mutant is a patch of a module's source (kit/mutants.py), for mistakes that look harmless in a
review. A patch whose text is no longer there fails too: a mutant is rewritten with its code.
"""

from __future__ import annotations

import json
import subprocess
from typing import NamedTuple

import pytest

from kit import TESTS, script

GATE = "node.privacy.gate"
CLIPPED = "node.maths.materialized"
IN_GATE = "tests/privacy/test_gate.py"
SOUND = f"{IN_GATE}::test_sound_code_breaks_nothing"
RELEASE = "answer = noise.release(total, self.config.sigma, privacy.clip, privacy.batch, stream)"
DEBIT = """\
        with self._ledger_errors_withhold():
            self.ledger.debit(self.config.run, t, to, self.mechanism)
"""
FACTOR = "    factor = (clip / norm).clamp(max=1.0)\n    total"
UNIFORM = 'self.keys.stream("batch", t, to).uniform(self.task.num_examples)'


class Mutant(NamedTuple):
    module: str
    patches: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    """Of which one at least must fail."""


MUTANTS = {
    "clip after noise": Mutant(
        GATE,
        (
            (
                "            privacy.clip,\n            before",
                "            1e9,\n            before",
            ),
            (RELEASE, f"{RELEASE}; answer *= min(1.0, privacy.clip / float(answer.norm()))"),
        ),
        (f"{SOUND}[vmap]",),
    ),
    "the mean of the batch is clipped": Mutant(
        CLIPPED,
        (
            (
                FACTOR,
                """\
    mean = torch.stack([_flat(g).mean(0).norm() for g in gradients.values()]).norm()
    factor = (clip / mean).clamp(max=1.0).double().expand(len(norm))
    total""",
            ),
        ),
        (f"{SOUND}[vmap]",),
    ),
    "quarters of the batch are clipped": Mutant(
        CLIPPED,
        (
            (
                "    norm = _example_norms(gradients)\n    usable",
                """\
    def quarters(g):
        parts = g.split(max(1, len(g) // 4))
        return torch.cat([p.mean(0, keepdim=True).expand_as(p) for p in parts])

    gradients = {name: quarters(g) for name, g in gradients.items()}
    norm = _example_norms(gradients)
    usable""",
            ),
        ),
        (f"{SOUND}[vmap]",),
    ),
    "a ghost is clipped by its largest layer": Mutant(
        "node.maths.ghost",
        (("return torch.stack(parts).sum(0)", "return torch.stack(parts).amax(0)"),),
        (f"{SOUND}[ghost]",),
    ),
    "divided by the drawn batch": Mutant(
        GATE,
        (
            ("self._draw(t, to)\n        if", "self._noted(self._draw(t, to))\n        if"),
            (
                "    def _draw(",
                """\
    def _noted(self, rows):
        self._drawn = max(1, len(rows))
        return rows

    def _draw(""",
            ),
            ("privacy.clip, privacy.batch, stream", "privacy.clip, self._drawn, stream"),
        ),
        (f"{SOUND}[vmap]",),
    ),
    "one noise for all": Mutant(
        GATE,
        (('self.keys.stream("noise", t, to)', 'Keys.insecure(0, self.me).stream("noise", 0, "")'),),
        (f"{SOUND}[vmap]",),
    ),
    "one noise for all of a round": Mutant(
        GATE,
        (('self.keys.stream("noise", t, to)', 'Keys.insecure(0, self.me).stream("noise", t, "")'),),
        (f"{SOUND}[vmap]",),
    ),
    "noise from torch's generator": Mutant(
        "node.randomness",
        (
            (
                "            _box_muller(self, out[start : start + BLOCK])",
                "            part = out[start : start + BLOCK]\n"
                "            part[:] = torch.randn(len(part)).numpy()",
            ),
        ),
        ("tests/privacy/test_noise.py::test_global_seeds_touch_nothing",),
    ),
    "a NaN norm skips the clip": Mutant(
        CLIPPED,
        (
            (
                "    usable = norm.isfinite()\n",
                "    usable = ~norm.isinf()\n"
                "    gradients = {name: g.nan_to_num() for name, g in gradients.items()}\n",
            ),
            (FACTOR, "    factor = (clip / norm).clamp(max=1.0).nan_to_num(1.0)\n    total"),
        ),
        ("tests/privacy/test_clipping.py::test_a_gradient_that_is_nan_in_part_counts_for_nothing",),
    ),
    "a second release of a round is not counted": Mutant(
        GATE,
        (
            (DEBIT, DEBIT.replace("            self", "            _first(self, t) and self", 1)),
            (
                "def _digest(",
                "def _first(gate, t):\n    return not gate.ledger.count(gate.config.run, t)\n\n\ndef _digest(",
            ),
        ),
        (f"{IN_GATE}::test_a_release_is_debited_and_repeated_byte_for_byte",),
    ),
    "the own release is not counted": Mutant(
        GATE,
        ((DEBIT, DEBIT.replace("            self", "            to != self.me and self", 1)),),
        (f"{IN_GATE}::test_a_release_is_debited_and_repeated_byte_for_byte",),
    ),
    "the batch has a public seed": Mutant(
        GATE,
        ((UNIFORM, UNIFORM.replace("self.keys", "Keys.insecure(self.config.seed, self.me)")),),
        (f"{IN_GATE}::test_fresh_keys_draw_other_batches",),
    ),
    "the batch is drawn by torch's generator": Mutant(
        GATE,
        ((UNIFORM, "torch.rand(self.task.num_examples).numpy()"),),
        (f"{IN_GATE}::test_torchs_seed_has_no_part_in_a_batch",),
    ),
    "masks from torch's generator": Mutant(
        GATE,
        (
            (
                'keyed_seeds(self.keys.stream("loss", t, to).bytes(32))',
                "lambda row: int(torch.randint(1 << 60, ()))",
            ),
        ),
        ("tests/privacy/test_sensitivity.py::test_the_door_takes_no_notice_of_torchs_seed",),
    ),
    "the debit after the bytes": Mutant(
        GATE,
        (
            (DEBIT, ""),
            (
                "        self.hooks.on_release(t, to)\n        return Released(answer)\n\n    def _clipped",
                f"        self.hooks.on_release(t, to)\n{DEBIT}        return Released(answer)\n\n"
                "    def _clipped",
            ),
        ),
        (f"{IN_GATE}::test_a_failing_ledger_withholds_and_recovers",),
    ),
    "a debit that fails withholds nothing": Mutant(
        GATE,
        (
            (
                DEBIT,
                DEBIT.replace("with self._ledger_errors_withhold()", "with suppress(LedgerError)"),
            ),
            (
                "from contextlib import contextmanager",
                "from contextlib import contextmanager, suppress",
            ),
        ),
        (f"{IN_GATE}::test_a_failing_ledger_withholds_and_recovers",),
    ),
    "a shared batch is accounted as an independent one": Mutant(
        "node.privacy.accountant",
        (("return self.sigma / math.sqrt(self.releases) if", "return self.sigma if"),),
        ("tests/privacy/test_accountant.py::test_degree_trap",),
    ),
}
SHORT = ("the batch has a public seed", "the debit after the bytes")
"""What the short form tries; the rest are as easily noticed, and cost a CPU second each."""


def results(mutants: dict[str, Mutant]) -> dict[str, int]:
    """pytest's exit code for each."""
    process = subprocess.run(
        script("mutants"),
        input=json.dumps(mutants),
        capture_output=True,
        cwd=TESTS,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    codes: dict[str, int] = json.loads(process.stdout)
    return codes


def sound(mutants: dict[str, Mutant]) -> Mutant:
    """No mutant: all of their tests."""
    return Mutant(
        "", (), tuple(dict.fromkeys(test for each in mutants.values() for test in each.tests))
    )


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(tuple(MUTANTS.keys() - SHORT), id="rest", marks=pytest.mark.long),
    ],
)
def test_every_mutant_is_noticed_and_sound_code_is_not(
    names: tuple[str, ...], real_starts: None
) -> None:
    mutants = {name: MUTANTS[name] for name in sorted(names)}
    codes = results({**mutants, "sound": sound(mutants)})
    assert codes.pop("sound") == pytest.ExitCode.OK
    assert {
        name: code for name, code in codes.items() if code != pytest.ExitCode.TESTS_FAILED
    } == {}
