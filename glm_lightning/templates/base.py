"""What a chat template is to the rest of the program."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from pathlib import Path

from glm_lightning.files import digest, fingerprint
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Segment


class Template(ABC):
    """Turns conversations into segments: control tokens by name, and text that can never become one.

    A segment is encoded on its own. The generation view of a conversation up to an answer is, id for id, the beginning
    of its training view.
    """

    @abstractmethod
    def __init__(self, tokenizer: Tokenizer) -> None:
        """Check that ``tokenizer`` has what the template needs.

        Raises:
            UserError: it has not.
        """

    @property
    @abstractmethod
    def stop_tokens(self) -> tuple[str, ...]:
        """Names of the control tokens that end an answer."""

    @property
    @abstractmethod
    def settings(self) -> str:
        """What decides the rendering besides the code of the class: a template text, switches."""

    @abstractmethod
    def render(self, conversation: Conversation) -> list[list[Segment]]:
        """Training view: the samples of a conversation, one where turns look the same in the middle as at the end.

        Where they do not (reasoning that is dropped from the history), each learned answer is a sample of its own, in
        order, rendered as generation will see it. Of an answer that is learned, everything the model has to generate
        is learned: its text and the control token that ends it.

        Raises:
            UserError: the conversation cannot be rendered.
        """

    @abstractmethod
    def prompt(self, conversation: Conversation) -> list[Segment]:
        """Generation view of a conversation whose last turn is not an answer: it ends where the answer begins."""

    @abstractmethod
    def clean(self, text: str) -> str:
        """The answer in a generated ``text`` (decoded without control tokens)."""

    @property
    def name(self) -> str:
        """The name that chooses this template in yaml: its file's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def fingerprint(self) -> str:
        """Changes with the template's code and settings."""
        return digest(self.name, fingerprint(Path(inspect.getfile(type(self)))), self.settings)
