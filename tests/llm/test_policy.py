"""A language model as a policy: what it answers is what is trained, rewarded and audited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from kit.own_families import sums, written
from node.config import ReasoningSection, TextSection
from node.data import Texts, questions
from node.data.questions import read_questions
from node.hooks import no_op
from node.llm.models import tiny_llama
from node.llm.policy import SAMPLES, LanguagePolicy, divided
from node.llm.prompts import Encoder
from node.llm.tokens import Bytes
from node.maths.grpo import GrpoConfig, advantages
from node.maths.grpo_rounds import figures
from node.maths.policy import Completions, Draws
from node.randomness import Keys
from node.task import flat, layout_of, views
from peer.errors import DataError, Diverged, TaskError

CONFIG = GrpoConfig(questions=4, num_generations=4, max_completion_length=6)
TOKENS = Bytes()


class Counter:
    """Counts yield points."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    model = tiny_llama(torch.float32, "eager", 3).requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():  # sharper than as drawn
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    layout = layout_of(model)

    def forward(parameters: Mapping[str, Tensor]) -> Any:
        def call(ids: Tensor, **more: Any) -> Any:
            return functional_call(model, dict(parameters), (), {"input_ids": ids, **more})

        return call

    return {
        "forward": forward,
        "layout": layout,
        "x": flat(layout, dict(model.named_parameters())),
        "encoder": Encoder(TextSection(prompt=("question",), answer="answer", length=32), TOKENS),
    }


def policy(made: dict[str, Any], *, own: str = "sort", **options: Any) -> LanguagePolicy:
    train, test = read_questions(("sort", "largest"))
    rows = train.take(
        torch.tensor([k for k, it in enumerate(train.columns["family"]) if it == own]).numpy()
    )
    keys = options.pop("keys", None) or Keys.insecure(0, "n0")
    draws = Draws("n0", 1, keys, options.pop("yield_point", no_op))
    section = ReasoningSection(
        families=("largest", "sort"), reward_scale=options.pop("reward_scale", {})
    )
    return LanguagePolicy(
        made["forward"],
        made["layout"],
        made["encoder"],
        section,
        rows,
        test,
        draws,
        generators=section.families,
        **options,
    )


def test_it_asks_its_own_questions_and_none_that_is_held_out(made):
    one = policy(made)
    assert one.families == ("sort",)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    assert rollouts.completions.ids.shape[0] == 16
    asked = {
        tuple(row[mask.bool()].tolist())
        for row, mask in zip(rollouts.prompts.ids, rollouts.prompts.mask, strict=True)
    }
    assert len(asked) == 4
    assert asked <= {tuple(prompt) for prompt in one._train.prompts}
    assert not asked & {tuple(prompt) for prompt in one._fixed.prompts}
    assert not any(item.held_out for item in one._train.items)
    assert all(item.held_out for item in one._fixed.items)


def test_a_round_and_a_step_decide_what_is_drawn(made):
    one, other = policy(made), policy(made)
    drawn = [each.rollouts(made["x"], CONFIG, 3, 1).completions.ids for each in (one, other)]
    assert torch.equal(*drawn)
    later = one.rollouts(made["x"], CONFIG, 3, 2).completions.ids
    assert later.shape != drawn[0].shape or not torch.equal(later, drawn[0])


def test_the_probability_of_an_answer_is_that_of_its_tokens_one_by_one(made):
    one = policy(made)
    asked = one.asked(read_questions(("sort",))[1]).take(range(5))
    naive = []
    for prompt, answer in zip(asked.prompts, asked.answers, strict=True):
        total = 0.0
        for k, token in enumerate(answer):
            ids = torch.tensor([prompt + answer[:k]])
            logits = made["forward"](views(made["layout"], made["x"]))(ids, use_cache=False).logits
            row = logits[0, -1].detach().clone()
            row[[TOKENS.pad, *TOKENS.begin]] = -1e9
            total += float(row.log_softmax(0)[token])
        naive.append(total)
    torch.testing.assert_close(
        one.probabilities(made["x"], asked).log(),
        torch.tensor(naive).double(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_an_answer_without_an_end_is_wrong_and_earns_nothing(made):
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG.model_copy(update={"max_completion_length": 2}), 0, 0)
    cut = ~rollouts.completions.ended
    assert cut.any()
    assert not rollouts.exact[cut].any()
    assert not rollouts.rewards[cut].any()


def test_rewards_are_on_the_owners_scale(made):
    plain, scaled = policy(made), policy(made, reward_scale={"sort": (10.0, 5.0)})
    one, other = (each.rollouts(made["x"], CONFIG, 0, 0).rewards for each in (plain, scaled))
    torch.testing.assert_close(other, 10 * one + 5)
    assert scaled.reward(made["x"]) == pytest.approx(10 * plain.reward(made["x"]) + 5)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_parts_of_a_batch_add_up_to_its_gradient(made, micro_batch):
    rewards = torch.rand(16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for one in (policy(made), policy(made, micro_batch=micro_batch)):
        rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
        update = one.gradient(made["x"], rollouts, CONFIG, advantages(rewards, CONFIG))
        gradients.append(update.gradient)
        assert update.mismatch < 1e-4
        assert (update.clip_low, update.clip_high, update.kl) == (0, 0, 0)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_step_along_the_gradient_makes_what_paid_likelier(made):
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    rewards = torch.zeros(16)
    rewards[0] = 1.0
    update = one.gradient(made["x"], rollouts, CONFIG, advantages(rewards, CONFIG))
    assert update.gradient is not None

    def likelihood(x: Tensor) -> float:
        row = torch.tensor([0])
        found = one._log_probs(
            x, rollouts.prompts.rows(row), rollouts.completions.rows(row), one.sampling(CONFIG)
        )
        assert found is not None
        return float((found * rollouts.completions.mask[:1]).sum())

    assert likelihood(made["x"] - 1e-3 * update.gradient) > likelihood(made["x"])


def test_without_an_advantage_there_is_no_gradient(made):
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    update = one.gradient(made["x"], rollouts, CONFIG, torch.zeros(16))
    assert update.gradient is None
    assert 0 < update.mismatch < 1e-4, "compared nevertheless"
    assert update.entropy > 0


def test_a_step_in_place_is_seen_by_who_answers_and_by_who_is_trained(made):
    """Views of the parameters as they were before it would be stale, and nothing would fail."""
    one, x = policy(made), made["x"].clone()
    one.rollouts(x, CONFIG, 0, 0)
    x.mul_(0.9)
    rollouts, fresh = (one.rollouts(each, CONFIG, 0, 0) for each in (x, x.clone()))
    assert torch.equal(rollouts.completions.log_probs, fresh.completions.log_probs)
    assert not rollouts.completions.log_probs.is_inference()
    update = one.gradient(x, rollouts, CONFIG, torch.arange(16.0))
    assert update.mismatch < 1e-4
    assert update.gradient is not None
    assert update.gradient.isfinite().all()


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_nothing_is_learned_from_truncated_completions(made, micro_batch):
    """If so wished; those that end weigh what they did."""
    config = CONFIG.model_copy(update={"loss_type": "dr_grpo", "max_completion_length": 2})
    masked = config.model_copy(update={"mask_truncated_completions": True})
    one = policy(made, micro_batch=micro_batch)
    rollouts = one.rollouts(made["x"], config, 0, 0)
    completions = rollouts.completions
    ended = torch.arange(16) % 3 == 0
    rollouts = replace(rollouts, completions=replace(completions, ended=ended))
    advantage = torch.randn(16, generator=torch.Generator().manual_seed(0))
    update = one.gradient(made["x"], rollouts, masked, advantage)
    expected = one.gradient(made["x"], rollouts, config, advantage * ended)
    torch.testing.assert_close(update.gradient, expected.gradient, rtol=1e-4, atol=1e-6)
    assert update.entropy == pytest.approx(expected.entropy)
    whole = one.gradient(made["x"], rollouts, config, advantage).gradient
    assert whole is not None
    assert expected.gradient is not None
    assert not torch.allclose(whole, expected.gradient, rtol=1e-2, atol=1e-4)
    none = replace(rollouts, completions=replace(completions, ended=torch.zeros(16).bool()))
    for beta in (0.0, 0.1):
        c = masked.model_copy(update={"beta": beta})
        assert one.gradient(made["x"], none, c, advantage, made["x"]).gradient is None


def test_what_others_drew_is_clipped_on_their_side(made):
    """TRL's clip_ratio: above where an answer was better than the others, below where worse."""
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    drawn, tokens = rollouts.completions, rollouts.completions.mask.sum(1)
    advantage = torch.tensor([1.0, -1.0] * 8)
    for factor, name in ((1, "clip_high"), (-1, "clip_low")):
        theirs = replace(drawn, log_probs=drawn.log_probs - 0.5 * factor)
        apart = replace(rollouts, completions=theirs)
        update = one.gradient(made["x"], apart, CONFIG, advantage, on_policy=False)
        share = float(tokens[factor * advantage > 0].sum() / tokens.sum())
        assert update.clip_low + update.clip_high == getattr(update, name)
        assert getattr(update, name) == pytest.approx(share)


def test_figures_have_the_share_of_answers_that_are_cut_off(made):
    one, config = policy(made), CONFIG.model_copy(update={"max_completion_length": 2})
    rollouts = one.rollouts(made["x"], config, 0, 0)
    ended = torch.arange(16) % 4 == 0
    rollouts = replace(rollouts, completions=replace(rollouts.completions, ended=ended))
    update = one.gradient(made["x"], rollouts, config, torch.ones(16))
    assert figures([(rollouts, update)])["completions_clipped_ratio"] == 0.75


def test_kl_is_from_the_reference(made):
    one, config = policy(made), CONFIG.model_copy(update={"beta": 0.1})
    rollouts = one.rollouts(made["x"], config, 0, 0)
    same, other = (
        one.gradient(made["x"], rollouts, config, torch.zeros(16), reference)
        for reference in (made["x"], 0.9 * made["x"])
    )
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert other.kl > 0.01


@pytest.mark.parametrize("advantage", [1.0, 0.0], ids=["learned", "no group has spread"])
def test_a_model_that_changed_while_it_answered_is_one_sentence(made, advantage):
    one = policy(made)
    rollouts = one.rollouts(0.9 * made["x"], CONFIG, 0, 0)
    with pytest.raises(TaskError, match="is not the one that is trained"):
        one.gradient(made["x"], rollouts, CONFIG, torch.full((16,), advantage))


def test_what_is_audited_nobody_else_knows_before(made):
    mine, again, other = (
        policy(made, keys=keys) for keys in (Keys.fresh(), Keys.fresh(), Keys.insecure(0, "n0"))
    )
    seeds = {each.audit_seed(0, b"commitment") for each in (mine, again, other)}
    assert len(seeds) == 3
    assert mine.audit_seed(0, b"commitment") in seeds, "asked again in a round, it is the same"
    assert mine.audit_seed(0, b"another") not in seeds
    assert mine.audit_seed(1, b"commitment") not in seeds


def test_audits_ask_the_same_of_both_models_and_count_what_they_read(made):
    one = policy(made)
    first, again = (one.right(made["x"], ("largest", "sort"), 7, 6) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (6,)
    assert one.tokens_read > 0
    assert not torch.equal(first, one.right(0.9 * made["x"], ("largest", "sort"), 7, 6))


def test_neighbors_are_answered_between_tokens_and_parts(made):
    calls = Counter()
    one = policy(made, micro_batch=4, yield_point=calls)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    after_drawing = calls.calls
    assert after_drawing >= rollouts.completions.ids.shape[1]
    one.gradient(made["x"], rollouts, CONFIG, torch.ones(16))
    assert calls.calls >= after_drawing + 4


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("sort",), True),
        (("sort", "largest"), True),
        ((), False),
        (("reverse",), False),
        (("sort", "sort"), False),
        (("gym:lcm",), False),
        (("nobody's",), False),
    ],
)
def test_a_neighbor_is_audited_by_generators_of_the_run_only(made, names, known):
    """Whatever else could be made here."""
    assert policy(made).knows(names) == known


def test_questions_for_testing_are_decided_by_the_question(made):
    rows, _ = read_questions(("sort",))
    both = Texts(
        torch.zeros(2 * len(rows), dtype=torch.int64),
        {name: numpy.concatenate([column, column]) for name, column in rows.columns.items()},
    )
    column = both.columns["question"]
    column[:400] = [f"another {k}" for k in range(400)]
    train, held_out = divided(both, made["encoder"])
    assert len(held_out) > 50
    assert not {*train.columns["question"]} & {*held_out.columns["question"]}
    with pytest.raises(DataError, match="too few questions"):
        divided(rows, made["encoder"])


# families with a scorer


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sums(tmp_path_factory.mktemp("own"))


def judged(made: dict[str, Any], name: str, **options: Any) -> LanguagePolicy:
    """A policy whose questions a scorer judges."""
    train, test = read_questions((name,))
    return LanguagePolicy(
        made["forward"],
        made["layout"],
        made["encoder"],
        ReasoningSection(families=(name,), **options),
        train,
        test,
        Draws("n0", 1, Keys.insecure(0, "n0")),
        generators=(name,),
        longest=6,
    )


def answered(texts: list[str]) -> Completions:
    """Answers with these texts and an end."""
    ids = [[*text.encode(), TOKENS.end] for text in texts]
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[TOKENS.pad] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    ended = torch.ones(len(ids), dtype=torch.bool)
    return Completions(padded, mask, torch.zeros(padded.shape), ended)


def test_a_scorer_says_what_is_right_and_what_is_nearly(made, name):
    one = judged(made, name, reward_scale={name: (10.0, 5.0)})
    asked = one.asked(read_questions((name,))[0]).take([0, 0, 0, 0])
    total = int(asked.items[0].prompt[5:-1])
    texts = [asked.items[0].answer, f"{total - 1}+1", "1+1", "x"]
    scores = one._scores(asked, answered(texts))
    assert scores == [1.0, 1.0, 0.2, 0.0]
    assert one._rewards(asked, scores).tolist() == pytest.approx([15, 15, 7, 5])
    cut = answered(texts)
    cut.ended[0] = False
    assert one._scores(asked, cut) == [0.0, 1.0, 0.2, 0.0]


def test_answers_on_which_a_scorer_fails_are_wrong_and_counted(made, tmp_path):
    code = "def sample(seed):\n    return {'question': f'{seed}?', 'answer': '7'}\n"
    code += "def score(item, text):\n    if text == 'boo': raise KeyError\n    return text == '7'\n"
    family = written(tmp_path / "fails.py", code)
    one = judged(made, family)
    asked = one.asked(read_questions((family,))[0]).take([0, 1, 2])
    assert one._scores(asked, answered(["7", "boo", "boo"])) == [1.0, 0.0, 0.0]
    assert one.scorer_failures == 2


def test_the_scorer_gets_the_question_as_it_was_made(made, name):
    """Whatever the template makes of it."""
    text = TextSection(prompt=("question",), answer="answer", length=80, template="instruction")
    one = judged({**made, "encoder": Encoder(text, TOKENS)}, name)
    assert one._train.items[0].prompt.startswith("make ")
    assert one.expected(made["x"], one._train.take([0])).shape == (1,)


def test_right_answers_are_a_share_of_what_is_drawn(made, name, monkeypatch):
    """As likely as their scorer says, where it can be told: here, whatever has an odd length."""
    one = judged(made, name)
    asked = one.asked(read_questions((name,))[0]).take(range(3))
    one._scorers[name] = lambda items, texts, _: [float(len(text) % 2) for text in texts]
    few = one.expected(made["x"], asked, 5)
    assert torch.equal(few * SAMPLES, (few * SAMPLES).round())
    monkeypatch.setattr("node.llm.policy.SAMPLES", 400)
    many, again = (one.expected(made["x"], asked, seed) for seed in (5, 6))
    torch.testing.assert_close(many, again, atol=0.15, rtol=0)
    assert 0 < float(many.mean()) < 1


def test_two_models_are_asked_with_the_same_random_numbers(made, name):
    """So that their difference is theirs: with others it is many times larger."""
    one = judged(made, name)
    one._scorers[name] = lambda items, texts, _: [float(len(text) % 2) for text in texts]
    asked = one.asked(read_questions((name,))[0]).take(range(16))
    near = made["x"] * 1.0001
    before = one.expected(made["x"], asked, 5)
    assert torch.equal(before, one.expected(made["x"], asked, 5))
    coupled = (one.expected(near, asked, 5) - before).abs().mean()
    apart = (one.expected(near, asked, 6) - before).abs().mean()
    assert coupled < 0.3 * apart


def test_audits_draw_answers_to_what_a_scorer_judges_only(made, name):
    one = judged(made, name)
    read = one.tokens_read
    assert one.right(made["x"], (name,), 7, 4).shape == (4,)
    assert one.tokens_read - read > 4 * SAMPLES * 9, "prompts of eight answers each"
    plain = policy(made)
    assert torch.equal(
        plain.right(made["x"], ("sort",), 7, 4),
        plain.probabilities(made["x"], plain.asked(texts_of("sort", 7, 4))),
    )


def texts_of(family: str, seed: int, count: int) -> Texts:
    items = [questions.find(family).sample(seed + k) for k in range(count)]
    return questions.texts(items, [family] * count)


def test_code_of_a_family_that_a_neighbor_names_is_not_run(made, name, tmp_path):
    ran = tmp_path / "ran"
    evil = written(tmp_path / "evil.py", f"open({str(ran)!r}, 'w')\n")
    assert not judged(made, name).knows((name, evil))
    assert not ran.exists()
    with pytest.raises(TaskError):
        questions.find(evil)
    assert ran.exists(), "the power check: named by its owner, it runs"


def test_what_a_file_calls_its_families_runs_nothing(made, name):
    """A column of somebody's file may say anything."""
    train, test = read_questions((name,))
    section, draws = ReasoningSection(), Draws("n0", 1, Keys.insecure(0, "n0"))
    one = LanguagePolicy(
        made["forward"], made["layout"], made["encoder"], section, train, test, draws
    )
    asked = one.asked(train).take([0])
    total = int(asked.items[0].prompt[5:-1])
    assert one._scores(asked, answered([f"{total - 1}+1"]))[0] < 1, "another sum is no answer here"


def test_a_model_that_is_no_longer_one_is_one_sentence(made):
    """Diverged: all it says is NaN, and no comparison with that is true."""
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    nowhere = torch.full_like(made["x"], torch.nan)
    with pytest.raises(Diverged, match=r"has diverged: .* are no numbers \(NaN\)\. ") as caught:
        one.gradient(nowhere, rollouts, CONFIG, torch.ones(len(rollouts.rewards)))
    assert "\n" not in str(caught.value)
    drawn = one.rollouts(nowhere, CONFIG, 0, 0)
    assert not drawn.exact.any()


def test_empty_answers_are_wrong_and_their_end_is_learned_from(made):
    one = policy(made)
    rollouts = one.rollouts(made["x"], CONFIG, 0, 0)
    empty = torch.zeros_like(rollouts.completions.mask)
    empty[:, 0] = 1
    completions = Completions(
        torch.full_like(empty, TOKENS.end),
        empty,
        rollouts.completions.log_probs,
        torch.ones(len(empty), dtype=torch.bool),
    )
    assert one.texts(completions) == [""] * len(empty)
    asked = one._train.take([0] * len(empty))
    assert one._scores(asked, completions) == [0.0] * len(empty)
    said = replace(rollouts, completions=completions, rewards=torch.zeros(len(empty)))
    blamed = -torch.ones(len(empty))
    update = one.gradient(made["x"], said, CONFIG, blamed, on_policy=False)
    assert update.gradient is not None
    assert update.gradient.isfinite().all()
    assert update.gradient.any()
