from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM

from glm_lightning import metrics
from glm_lightning.evaluation import Scores, score
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.templates import Template
from glm_lightning.templates.base import Tools
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Origin, Segment, UserError

LETTERS = "abcdefghij好裙子红"
CONTROLS = {"<pad>": 0, "<user>": 1, "<bot>": 2, "<end>": 3}


@final
class Letters(Tokenizer):
    """A token for each letter."""

    @property
    def hf(self) -> Any:
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return len(CONTROLS) + len(LETTERS)

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def controls(self) -> Mapping[str, int]:
        return CONTROLS

    @property
    def fingerprint(self) -> str:
        return "letters"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(CONTROLS) + LETTERS.index(letter) for letter in text] for text in texts]

    def decode(self, ids: Iterable[int], *, control: bool = False) -> str:
        return "".join(LETTERS[i - len(CONTROLS)] for i in ids if i >= len(CONTROLS))

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def save_official(self, folder: Path) -> None:
        raise NotImplementedError


@final
class Turns(Template):
    """Control token and text for each turn."""

    def document(self, text):
        raise NotImplementedError("conversations only")

    def settled(self, text, **kwargs):
        return text

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.parsed: list[tuple[str, bool | None]] = []

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        return ("<end>", "<user>")

    @property
    def settings(self) -> str:
        return ""

    def render(self, conversation: Conversation) -> list[list[Segment]]:
        return [[*self.prompt(conversation.prompt()), Segment(conversation.answer(), learn=True)]]

    def prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        marks = {"user": "<user>", "assistant": "<bot>"}
        turns = [[Segment(control=marks[m.role]), Segment(m.content)] for m in conversation.messages]
        return [*(segment for turn in turns for segment in turn), Segment(control="<bot>")]

    def thinking(self, answer: Message) -> bool | None:
        return answer.content.startswith("3")

    def parse(self, text: str, *, thinking: bool | None = None, tools: Tools = ()) -> Message:
        self.parsed.append((text, thinking))
        return Message("assistant", text.upper(), reasoning="left out")


class Rows:
    """Questions of growing length, some with a turn before them."""

    def __len__(self) -> int:
        return 7

    def conversations(self, indices: Iterable[int]) -> list[Conversation]:
        return [self.conversation(index) for index in indices]

    def conversation(self, index: int) -> Conversation:
        before = (Message("user", "jj"), Message("assistant", "ii")) if index % 2 else ()
        question, answer = Message("user", LETTERS[: 1 + index * 2 % 5]), Message("assistant", f"{index} 裙子")
        return Conversation((*before, question, answer), Origin(Path("rows.jsonl"), index + 1))


@pytest.fixture(scope="module")
def network() -> GlmForCausalLM:
    torch.manual_seed(1)
    size = {"vocab_size": 18, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return GlmForCausalLM(GlmConfig(**size, **heads, pad_token_id=0, eos_token_id=None, initializer_range=0.5))


def run(network: Any, template: Template | None = None, **options: Any) -> Scores:
    defaults: dict[str, Any] = {"metrics": [metrics.find(name) for name in metrics.names()], "max_new_tokens": 6}
    return score(network, Rows(), tokenizer=Letters(), template=template or Turns(Letters()), **(defaults | options))


def test_prompt_ids_mix_control_tokens_and_text() -> None:
    prompts = [[Segment(control="<user>"), Segment("ab"), Segment(control="<bot>")], [], [Segment("b"), Segment("")]]
    assert prompt_ids(prompts, Letters()) == [[1, 4, 5, 2], [], [5]]


@torch.no_grad()
def test_answers_are_those_of_a_plain_loop(network: GlmForCausalLM) -> None:
    scores, tokenizer, template = run(network, batch_size=3), Letters(), Turns(Letters())
    network.eval()
    assert len(scores.answers) == 7
    for i, answered in enumerate(scores.answers):
        row = Rows().conversation(i)
        ids = prompt_ids([template.prompt(row.prompt())], tokenizer)[0]
        said: list[int] = []
        while len(said) < 6 and not {1, 3} & set(said):
            said.append(int(network(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        assert answered["finished"] == bool({1, 3} & set(said))
        assert answered["answer"] == tokenizer.decode(said).upper()
        assert answered["reference"] == f"{i} 裙子"
        assert answered["prompt"] == "\n".join(message.content for message in row.messages[:-1])
        assert answered["origin"] == f"rows.jsonl:{i + 1}"


def test_metrics_compare_answers_with_references(network: GlmForCausalLM) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> metrics.Statistics:
        seen.append(metrics.texts(predictions, references))
        return metrics.means({"own": [12.5] * 7})

    own = metrics.Metric("own", statistics, lambda references: True)
    scores = run(network, metrics=[own, metrics.find("exact_match")])
    assert seen == [([a["answer"] for a in scores.answers], [a["reference"] for a in scores.answers])]
    finished = sum(answered["finished"] for answered in scores.answers)
    assert scores.metrics == {"own": 12.5, "exact_match": 0.0, "finished": pytest.approx(100 * finished / 7)}


def test_all_known_metrics_come_under_their_names(network: GlmForCausalLM) -> None:
    ours = {"rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "exact_match", "finished"}
    ours |= {"numeric", "numeric_marked", "tool_calls", "tool_names", "accuracy", "f1_macro"}
    ours |= {f"f1/{i} 裙子" for i in range(7)}
    of_official_scripts = {"bleu_4_characters", "bleu_4_words", "rouge_chinese_1", "rouge_chinese_2", "rouge_chinese_l"}
    assert set(run(network).metrics) == ours | of_official_scripts


def test_what_is_scored_is_the_answer_in_the_text(network: GlmForCausalLM) -> None:
    template = Turns(Letters())
    scores = run(network, template)
    generated = [text for text, _ in template.parsed if "裙子" not in text or not text[0].isdigit()]
    assert [answered["answer"] for answered in scores.answers] == [text.upper() for text in generated]


def test_each_row_is_asked_as_its_answer_was_trained(network: GlmForCausalLM) -> None:
    """With or without reasoning; and what counts as the reference is read as what is generated."""
    template = Turns(Letters())
    asked: list[bool | None] = []
    prompt = template.prompt

    def watched(conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        asked.append(thinking)
        return prompt(conversation, thinking=thinking)

    template.prompt = watched  # type: ignore[method-assign]
    run(network, template)
    assert asked[:7] == [i == 3 for i in range(7)]
    assert {thinking for text, thinking in template.parsed if text.startswith("3 ")} == {True}
    assert sum(thinking is True for _, thinking in template.parsed) == 2


def test_limit_takes_the_first_rows(network: GlmForCausalLM) -> None:
    assert run(network, limit=2).answers == run(network).answers[:2]
    assert len(run(network, limit=100).answers) == 7


def test_no_row_is_refused(network: GlmForCausalLM) -> None:
    with pytest.raises(UserError, match="no row to answer"):
        run(network, limit=0)


def test_nothing_is_left_on_the_screen(network: GlmForCausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    run(network)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
