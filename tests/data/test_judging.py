from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data import judging
from glm_lightning.data.judging import Fault, Texts, similarity
from glm_lightning.data.judging.kinds import OF_ROWS, severities
from glm_lightning.types import Conversation, Message, UserError

CONTROLS = {"<|user|>": 1, "[gMASK]": 2, "</s>": 3}
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
TURNS = st.lists(TEXT, min_size=1, max_size=3)


def conversation(*turns: str, system: str = "") -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    return Conversation((Message("system", system), *messages) if system else messages)


def found(kind: str, *conversations: Conversation) -> dict[int, str]:
    (rule,) = [rule for rule in judging.rules() if rule.kind.name == kind]
    pairs = list(rule.find(Texts(conversations, system=True), controls=CONTROLS))
    assert len(dict(pairs)) == len(pairs), "one fault a row"
    return dict(pairs)


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        ("control_token", ["ask <|user|> x", "a</s>", "[gMASK]"], ["<|nobody|>", "user", "< |user|>", "<s>"]),
        ("control_character", ["a\x00b", "\x1b[0m", "\x7f", "x\x85"], ["tab\tnew\nline\r", "中文", "\u200d👩‍👩‍👧"]),
        ("replacement_character", ["浣犲\ufffd", "\ufffd\ufffd"], ["�"[:0], "\ufffe", "?"]),
    ],
)
def test_a_rule_finds_what_it_is_for_and_nothing_else(kind: str, bad: list[str], good: list[str]) -> None:
    rows = [conversation("q", text) for text in good] + [conversation(text, "a") for text in bad]
    assert sorted(found(kind, *rows)) == list(range(len(good), len(good) + len(bad)))
    assert found(kind, conversation("q", "a", system=bad[0])), "a system turn is read too"


def test_a_fault_shows_where_it_is_and_no_other_row() -> None:
    rows = [conversation("before", "first"), conversation("question", "it is x\x00y here"), conversation("next", "z")]
    ((row, text),) = found("control_character", *rows).items()
    assert row == 1
    assert "U+0000 (1 such) in 'question\\nit is x\\x00y here'" in text


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(TURNS, min_size=1, max_size=6), cut=st.integers(0, 6))
def test_what_is_judged_does_not_depend_on_the_neighbours(rows: list[list[str]], cut: int) -> None:
    conversations = [conversation(*turns) for turns in rows]
    for rule in judging.rules():
        together = list(rule.find(Texts(conversations, system=True), controls=CONTROLS))
        parts = [conversations[:cut], conversations[cut:]]
        apart = [
            (row + start, text)
            for start, part in zip((0, len(parts[0])), parts, strict=True)
            for row, text in rule.find(Texts(part, system=True), controls=CONTROLS)
        ]
        assert together == apart
    whole = sketches(conversations)
    assert (whole == np.concatenate([sketches(conversations[:cut]), sketches(conversations[cut:])])).all()


def sketches(conversations: Sequence[Conversation]) -> similarity.Sketches:
    return similarity.minima(*similarity.pieces(Texts(conversations, system=False)))


def test_every_kind_has_a_name_of_its_own_and_the_gravest_are_errors() -> None:
    kinds = judging.kinds()
    rows = [rule.kind for rule in judging.rules()]
    assert len(kinds) == len(OF_ROWS) + len(rows) + len(similarity.BETWEEN_ROWS)
    assert {kind.name for kind in kinds.values() if kind.severity == "error"} == {kind.name for kind in OF_ROWS}


def test_severities_can_be_changed_where_rows_can_be_trained_on() -> None:
    kinds = judging.kinds()
    chosen = severities(kinds, {"duplicate": "error", "control_token": "off"})
    assert (chosen["duplicate"], chosen["control_token"], chosen["leak"]) == ("error", "off", "notice")
    wrong = {"dupplicate": "error", "leak": "fatal", "syntax": "notice"}
    with pytest.raises(UserError) as error:
        severities(kinds, wrong)  # type: ignore[arg-type]
    assert [problem.split(":")[0].split(" is ")[0] for problem in error.value.problems] == [
        f"data.severity.{name}" for name in wrong
    ]


def test_a_fault_travels_between_processes_with_its_kind() -> None:
    fault = pickle.loads(pickle.dumps(Fault("role", "of nobody").at("a.jsonl:3")))
    assert (fault, fault.kind) == ("a.jsonl:3: of nobody", "role")


def jaccard(left: str, right: str) -> float:
    a, b = ({text[i : i + 5] for i in range(max(len(text) - 4, 1))} for text in (left, right))
    return len(a & b) / len(a | b)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_near_copies_are_those_that_share_most_of_their_pieces(data: st.DataObject) -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz 中文字符今天天气很好"
    base = data.draw(st.text(alphabet, min_size=200, max_size=300))
    place = data.draw(st.integers(0, len(base) - 1))
    near = base[:place] + "#" + base[place + 1 :]  # 5 of at least 196 pieces differ
    far = data.draw(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=200, max_size=300))
    half = base[: len(base) // 2] + far[len(far) // 2 :]
    texts = [far, base, half, near]
    groups = similarity.near_groups(sketches([conversation(text) for text in texts]))
    if jaccard(base, near) > 0.94:
        assert groups[3] == 1
    if jaccard(base, half) < 0.55 and jaccard(far, half) < 0.55:
        assert groups.tolist()[:3] == [0, 1, 2]


def test_the_estimate_is_jaccards_measure() -> None:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    estimated, exact = [], []
    for share in np.linspace(0.02, 0.9, 40):
        left = "".join(rng.choice(letters, 600))
        keep = int(600 * (1 - share))
        right = left[:keep] + "".join(rng.choice(letters, 600 - keep))
        a, b = sketches([conversation(left), conversation(right)])
        estimated.append((a == b).mean())
        exact.append(jaccard(left, right))
    assert abs(np.mean(np.subtract(estimated, exact))) < 0.02
    assert np.corrcoef(estimated, exact)[0, 1] > 0.97


def test_a_system_turn_does_not_make_rows_alike() -> None:
    system = "You answer questions about the weather in Chinese cities, politely and at length. " * 20
    rows = [
        conversation(question, "yes", system=system) for question in ("is it raining?", "今天几度？", "who are you")
    ]
    assert similarity.near_groups(sketches(rows)).tolist() == [0, 1, 2]


def test_short_and_empty_texts_are_pieces_of_their_own() -> None:
    rows = [conversation(text) for text in ("", "a", "b", "a", "ab", "abcd", "abcde", "")]
    assert similarity.near_groups(sketches(rows)).tolist() == [0, 1, 2, 1, 4, 5, 6, 0]


@given(labels=st.lists(st.integers(0, 5), max_size=20))
def test_exact_groups_are_named_by_their_first_row(labels: list[int]) -> None:
    groups = similarity.exact_groups(np.array(labels, np.uint64))
    assert groups.tolist() == [labels.index(label) for label in labels]
