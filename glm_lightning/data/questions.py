"""Rows that are to be answered, in any format that is read, with answers of their own or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm_lightning.data.formats import Format, RowKind
from glm_lightning.data.inputs import Inputs
from glm_lightning.data.reading import Problems
from glm_lightning.types import Conversation, Document, Message, Origin, Preference, UserError


@dataclass(frozen=True, slots=True)
class Question:
    """A row, the turns that ask for its last answer, and the conversation with that answer if the row has one."""

    row: Mapping[str, Any]
    asked: Conversation
    answered: Conversation | None


def questions(inputs: Inputs, problems: Problems) -> Iterator[Question]:
    """The questions of all rows, in order; what is wrong with others goes to ``problems``.

    A conversation asks what its last answer answers, a preference pair what both its answers do (the chosen one is the
    row's own), a text itself. ``inputs`` are recognised as ``asked``.
    """
    for file in inputs.files:
        for row in file.read(problems):
            try:
                yield _question(file.format, row.value, Origin(file.path, row.line))
            except UserError as error:
                problems.add(file.path, *error.problems)


def _question(format: RowKind[Any], row: Mapping[str, Any], origin: Origin) -> Question:
    whole = format.answered(row) if isinstance(format, Format) else row
    parsed = format.parse(whole, origin)
    if isinstance(parsed, Document):
        return Question(row, Conversation((Message("user", parsed.text),), origin), None)
    conversation: Conversation = parsed.chosen if isinstance(parsed, Preference) else parsed
    return Question(row, conversation.prompt(), conversation if whole is row else None)
