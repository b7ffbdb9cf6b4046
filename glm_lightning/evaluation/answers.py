"""A model's answers to the rows of a data set, beside those that the rows have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from glm_lightning.inference.asking import ask, prompts_of
from glm_lightning.inference.ledger import Ledger, Reply
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.prompts import Prompt
from glm_lightning.inference.sampling import GREEDY, Sampling
from glm_lightning.types import Conversation, Message, ToolCall


class Record(TypedDict):
    """One row: what was asked (the turns' texts, a line break between them), what should have come, what came."""

    prompt: str
    reference: str
    answer: str
    origin: str  # file:line, empty where unknown
    finished: bool  # the model ended the answer itself
    shortened: NotRequired[bool]  # the prompt had no room in the context, and lost something
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One row with what came."""

    row: Conversation
    prompt: Prompt
    reply: Reply
    prediction: Message
    reference: Message

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said: no text, no call."""
        return not self.prediction.text.strip()

    def record(self) -> Record:
        """As JSON has it."""
        record = Record(
            prompt="\n".join(message.content for message in self.row.prompt().messages),
            reference=self.reference.text,
            answer=self.prediction.text,
            origin=str(self.row.origin or ""),
            finished=self.reply.finished,
        )
        if self.prompt.shortened:
            record["shortened"] = True
        if self.prediction.reasoning is not None:
            record["reasoning"] = self.prediction.reasoning
        if self.prediction.tool_calls:
            record["tool_calls"] = [_plain(call) for call in self.prediction.tool_calls]
        return record


def prompts(glm: GLM, rows: Sequence[Conversation], *, max_new_tokens: int) -> list[Prompt]:
    """What each row asks last, as its own answer was asked for in training."""
    asked = [row.prompt() for row in rows]
    return prompts_of(glm, asked, thinking=[_thinking(glm, row) for row in rows], max_new_tokens=max_new_tokens)


def answered(
    glm: GLM,
    rows: Sequence[Conversation],
    asked: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """The answer to the last question of each row, for which `prompts` has made the prompts."""
    replies = ask(
        glm,
        asked,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        sampling=sampling,
        ledger=ledger,
        progress=progress,
    )
    return [
        Answered(
            row,
            prompt,
            reply,
            prediction=glm.template.parse(reply.text, thinking=_thinking(glm, row), tools=row.tools),
            reference=glm.template.expected(row),
        )
        for row, prompt, reply in zip(rows, asked, replies, strict=True)
    ]


def _thinking(glm: GLM, row: Conversation) -> bool | None:
    return glm.template.thinking(next(m for m in reversed(row.messages) if m.role == "assistant"))


def _plain(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments)}
