"""What of a row stands before its answer: templates, braces, conversations; and that nothing but
text is ever shown.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from node.config import TaskSection
from node.config.templates import fields, filled
from node.data import read_texts
from node.llm.prompts import Encoder
from node.llm.tokens import Bytes, Pretrained, Tokens
from peer.errors import ConfigurationError, DataError

HELLO = [{"role": "user", "content": "Hello."}]
TALK = [
    {"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye?"}, {"role": "assistant", "content": "Bye."},
]  # fmt: skip
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "Anna"}}]}
CHATML = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def written(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> Path:
    path = folder / f"mine.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(
            "\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows),
            encoding="utf-8",
        )
    return path


def shown(path: Path, tokens: Tokens | None = None, **text: Any) -> list[tuple[str, str]]:
    """(what is given, the answer) of each row."""
    labels = text.pop("labels", ())
    task = TaskSection(labels=labels, classes=len(labels) or 10, text={"length": 512, **text})  # type: ignore[arg-type]
    assert task.text is not None
    rows = read_texts(path, task)
    encoder = Encoder(task.text, tokens or Bytes(), labels)
    return list(zip(encoder.prompts(rows), rows.columns[task.text.answer], strict=True))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Review: {text}", "Review: fine"),
        ("{{text}}", "{text}"),
        ("{{{text}}}", "{fine}"),
        ('{{"review": "{text}"}}', '{"review": "fine"}'),
        ('{"review": {"text": "{text}"}}', '{"review": {"text": "fine"}}'),
        ('{"a": {"b": 1}} {text} {{x}}', '{"a": {"b": 1}} fine {x}'),
        ("{{ and }} of {text}", "{ and } of fine"),
        ("{} { } {1 {text}", "{} { } {1 fine"),
        ("{a b} {text}", "two words fine"),
    ],
)
def test_two_braces_stand_for_one(template: str, prompt: str) -> None:
    assert filled(template, {"text": "fine", "a b": "two words"}.__getitem__) == prompt


def test_the_fields_of_a_template() -> None:
    assert fields("{b} {a} {{c}} {b} {{{d}}}") == ["b", "a", "d"]
    TaskSection(text={"template": "{{mood}} {text}", "answer": "mood"})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"nor a text with a \{column\}"):
        Encoder(TaskSection(text={"template": "{{text}}", "answer": "mood"}).text, Bytes())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_the_last_turn_of_the_assistant_is_learned(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, [{"messages": TALK}, {"messages": [*TALK, *HELLO]}], kind)
    prompt = "system: Be brief.\nuser: Hello.\nassistant: Hi.\nuser: Bye?\nassistant:"
    assert shown(path, answer="messages") == [(prompt, "Bye.")] * 2


def test_an_answer_without_anything_before(tmp_path: Path) -> None:
    assert shown(written(tmp_path, [{"messages": TALK[-1:]}]), answer="messages") == [
        ("assistant:", "Bye.")
    ]


def with_template(folder: Path, template: str = CHATML) -> Pretrained:
    """A tokenizer of words with a chat template."""
    reason = "pip install 'peerpoise[llm]'"
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "<end>": 1, "<begin>": 2}, unk_token="<unk>")
    )
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "<begin> $A", special_tokens=[("<begin>", 2)]
    )
    special = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<end>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.chat_template = template
    return Pretrained(made, "tiny")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_conversations_go_through_the_models_own_template(tmp_path: Path, template: str) -> None:
    path = written(tmp_path, [{"messages": TALK}])
    [(prompt, answer)] = shown(path, with_template(tmp_path), answer="messages", template=template)
    assert (
        prompt
        == "<|system|>Be brief.\n<|user|>Hello.\n<|assistant|>Hi.\n<|user|>Bye?\n<|assistant|>"
    )
    assert answer == "Bye."


def test_a_chat_template_brings_its_own_beginning(tmp_path: Path) -> None:
    path, tokens = written(tmp_path, [{"messages": TALK, "text": "word"}]), with_template(tmp_path)
    for answer, begins in (("text", True), ("messages", False)):
        task = TaskSection(text={"answer": answer})  # type: ignore[arg-type]
        assert task.text is not None
        [(prompt, _)] = Encoder(task.text, tokens).pairs(read_texts(path, task))
        assert (tokens.begin, prompt[:1] == [2]) == ((2,), begins)


def test_a_conversation_is_a_prompt_for_another_column(tmp_path: Path) -> None:
    path = written(tmp_path, [{"messages": TALK[:2], "mood": "good"}])
    asked = "system: Be brief.\nuser: Hello."
    mood: dict[str, Any] = {"answer": "mood", "labels": ("bad", "good")}
    assert shown(path, template="{messages}\nMood:", **mood) == [(f"{asked}\nMood:", "good")]
    assert shown(path, prompt=["messages"], **mood) == [(f"{asked}\n", "good")]
    [(prompt, _)] = shown(
        path, with_template(tmp_path), template="chat", prompt=["messages"], **mood
    )
    assert prompt == "<|system|>Be brief.\n<|user|>Hello.\n<|assistant|>"


def test_labels_may_be_what_the_assistant_said(tmp_path: Path) -> None:
    rows = [
        {"messages": [*HELLO, {"role": "assistant", "content": it}]}
        for it in ("good", "bad", "good")
    ]
    task = TaskSection(labels=("bad", "good"), classes=2, text={"answer": "messages"})  # type: ignore[arg-type]
    assert read_texts(written(tmp_path, rows), task).y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"messages": TALK}, {"messages": HELLO}],
            "row 2: the column 'messages' is no conversation with a turn of",
        ),
        (
            [{"messages": TALK}, {"messages": "Hi."}],
            "row 2: the column 'messages' is no conversation with a turn of",
        ),
        (
            [{"messages": [{"from": "human", "value": "Hi."}]}],
            "row 1: the column 'messages' holds a list or an object",
        ),
        (
            [{"messages": {"name": "Anna"}}],
            "row 1: the column 'messages' holds a list or an object",
        ),
        (
            [{"messages": ["Anna", "Bert"]}],
            "row 1: the column 'messages' holds a list or an object",
        ),
        (
            [{"messages": [{"role": "user", "content": ["Anna"]}]}],
            "row 1: the column 'messages' has a turn whose content",
        ),
        (
            [{"messages": TALK}, {"messages": [*TALK, CALL]}],
            "row 2: the column 'messages' has a turn whose content is no",
        ),
        (
            [{"messages": [*HELLO, {**TALK[2], **CALL}]}],
            "row 1: the column 'messages' has a turn whose content is no",
        ),
        (
            [{"messages": str([*HELLO, TALK[2]])}],
            "row 1: the column 'messages' holds a list as Python prints it",
        ),
        (
            [{"messages": [*HELLO, {**TALK[2], "content": " \n"}]}],
            "row 1, has nothing in the column 'messages'",
        ),
        ([{"messages": []}], "row 1: the column 'messages' holds a list"),
    ],
)
def test_what_is_no_conversation_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(DataError) as caught:
        shown(written(tmp_path, rows), answer="messages")
    assert says in str(caught.value)
    assert "Anna" not in str(caught.value)


def test_keys_without_a_value_do_no_harm(tmp_path: Path) -> None:
    talk = [{**turn, "tool_calls": None, "name": None} for turn in TALK]
    assert (
        shown(written(tmp_path, [{"messages": talk}], "parquet"), answer="messages")[0][1] == "Bye."
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_conversation_may_be_written_as_text(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, [{"messages": json.dumps(TALK[:3]), "mood": "good"}])
    if kind == "csv":
        path = tmp_path / "mine.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [["messages", "mood"], [json.dumps(TALK[:3], indent=1), "good"]]
            )
    prompt = "system: Be brief.\nuser: Hello."
    assert shown(path, answer="messages") == [(f"{prompt}\nassistant:", "Hi.")]
    assert shown(path, answer="mood", prompt=["messages"]) == [
        (f"{prompt}\nassistant: Hi.\n", "good")
    ]
    other = '[{"drug": "a"}]'
    assert shown(written(tmp_path, [{"messages": other}]), answer="messages") == [("", other)]


@pytest.mark.parametrize("value", [{"name": "Anna"}, ["Anna"], [["Anna"]], {}, []])
@pytest.mark.parametrize("text", [{"template": "{about} is"}, {"prompt": ["about"]}])
def test_a_list_or_an_object_is_never_shown(
    tmp_path: Path, value: object, text: dict[str, Any]
) -> None:
    path = written(tmp_path, [{"about": "x", "mood": "good"}, {"about": value, "mood": "good"}])
    with pytest.raises(
        DataError,
        match=r"row 2: the column 'about' holds a list or an object; take what is needed as text",
    ):
        shown(path, answer="mood", **text)
    assert shown(path, answer="mood") == [("", "good")] * 2, (
        "a column that nobody names does no harm"
    )


def test_a_conversation_stands_for_itself(tmp_path: Path) -> None:
    path = written(tmp_path, [{"messages": TALK, "hint": "x"}])
    for text in ({"template": "instruction"}, {"template": "{hint}"}, {"prompt": ["hint"]}):
        with pytest.raises(
            ConfigurationError, match="holds conversations, which are given as they are"
        ):
            shown(path, answer="messages", **text)
    with pytest.raises(ConfigurationError, match="bytes has no chat template"):
        shown(path, answer="messages", template="chat")


def test_a_template_that_refuses_turns_is_a_sentence(tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system: ' + messages[0].content) }}{% endif %}"
    with pytest.raises(
        DataError, match="chat template of tiny takes no turns of system, user, assistant, user"
    ) as caught:
        shown(
            written(tmp_path, [{"messages": TALK}]),
            with_template(tmp_path, strict),
            answer="messages",
        )
    assert "brief" not in str(caught.value)
