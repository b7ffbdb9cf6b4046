"""ChatGLM-6B: the prompt, `[gMASK]<sop>`, the answer, `<eop>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import final

from glm_lightning.templates.base import Known, require
from glm_lightning.templates.rounds import Round, Rounds
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message, Segment

_HALF_TO_FULL = str.maketrans(",!:;?", "，！：；？")
_BESIDE_CHINESE = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


@final
class ChatGLM(Rounds):
    """The format of the official `chat` and `ptuning/main.py`.

    A first question stands alone; with a history the rounds are numbered from 0. `<sop>` is a label in the official
    training, predicted by `[gMASK]`, and so it is here. The tokenizer folds full-width punctuation; in answers it is
    put back beside Chinese characters, as the official `process_response` does.
    """

    MODEL = "ChatGLM-6B"
    PREFIX = ("[gMASK]", "<sop>")
    END = "<eop>"

    def __init__(self, tokenizer: Tokenizer) -> None:
        require(tokenizer, ("[gMASK]", "<sop>", "<eop>"), template="chatglm", model="ChatGLM-6B")

    def asked(self, history: Sequence[Round], question: str) -> list[Segment]:
        """The question, behind the rounds before it if there are any, then `[gMASK]` and `<sop>`."""
        text = question
        if history:
            rounds = [f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history)]
            text = f"{''.join(rounds)}[Round {len(history)}]\n问：{question}\n答："
        return [Segment(text), Segment(control="[gMASK]"), Segment(control="<sop>", learn=True)]

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The text with Chinese punctuation; see `Template.parse`."""
        answer = _BESIDE_CHINESE.sub(lambda found: found.group().translate(_HALF_TO_FULL), text.strip())
        return Message("assistant", answer)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """All but a punctuation mark at the end, whose width depends on what follows; see `Template.settled`."""
        answer = text.strip()
        undecided = answer[-1:] in (*",!:;?",)
        return Message("assistant", self.parse(text).content[: len(answer) - undecided])
