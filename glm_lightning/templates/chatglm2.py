"""ChatGLM2-6B: `[gMASK]sop`, numbered rounds, the answer, `</s>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from glm_lightning.templates.base import Known, require
from glm_lightning.templates.rounds import Round, Rounds
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message, Segment


@final
class ChatGLM2(Rounds):
    """The format of the official `build_prompt` and `ptuning/main.py`: rounds from 1, the first one numbered too.

    Answers in the history have no end token, so each answer is a sample of its own.
    """

    MODEL = "ChatGLM2"
    PREFIX = ("[gMASK]", "sop")
    END = "</s>"

    def __init__(self, tokenizer: Tokenizer) -> None:
        require(tokenizer, ("[gMASK]", "sop", "</s>"), template="chatglm2", model="ChatGLM2")

    def asked(self, history: Sequence[Round], question: str) -> list[Segment]:
        """`[gMASK]`, `sop`, and one text of all rounds and the question."""
        rounds = [f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(history, start=1)]
        text = f"{''.join(rounds)}[Round {len(history) + 1}]\n\n问：{question}\n\n答："
        return [*(Segment(control=name) for name in self.PREFIX), Segment(text)]

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The text without white space around it; see `Template.parse`."""
        return Message("assistant", text.strip())

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The same; see `Template.settled`."""
        return self.parse(text)
