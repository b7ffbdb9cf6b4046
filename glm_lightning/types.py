"""The words all rooms share, and the legend of tensor shapes.

Shapes: ``B`` rows of a micro-batch, ``T`` positions of a row, ``H`` hidden size, ``V`` vocabulary size,
``N`` supervised positions of a micro-batch (whose next token is learned).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

if TYPE_CHECKING:  # torch takes a second or two to import, and `UserError` is needed where nothing else of it is
    import torch
    from torch import Tensor

T = TypeVar("T")

IGNORE = -100
"""Label of a position that is not learned (the value torch's own losses ignore)."""

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: a file and the line it starts on (1-based)."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that an answer asks for, with its arguments by name (JSON values, in the row's order)."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``learn`` is None where the row does not say: then answers are learned and nothing else is.

    ``reasoning`` is what was thought before an answer, None where the row has none; ``tool_calls`` are what an answer
    asks for. A turn of the role ``tool`` is the result of one call.
    """

    role: Role
    content: str
    learn: bool | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether the loss sees this turn."""
        return self.role == "assistant" if self.learn is None else self.learn

    @property
    def text(self) -> str:
        """Content, and each call as JSON on a line of its own; reasoning is left out."""
        calls = ({"name": call.name, "arguments": call.arguments} for call in self.tool_calls)
        lines = [json.dumps(call, ensure_ascii=False) for call in calls]
        return "\n".join([self.content, *lines] if self.content else lines)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with the row they came from.

    ``tools`` are the definitions that the model is shown, as the row gave them: OpenAI's ``{"type": "function",
    "function": {...}}``, or the bare ``{"name": ..., "description": ..., "parameters": ...}``.
    """

    messages: tuple[Message, ...]
    origin: Origin | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    def prompt(self) -> Conversation:
        """The turns before the last answer: what the model is given when that answer is asked for."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        return replace(self, messages=self.messages[:last])

    def answer(self) -> str:
        """The last answer."""
        return next(m.content for m in reversed(self.messages) if m.role == "assistant")

    @property
    def said(self) -> tuple[Message, ...]:
        """All its texts as turns, for what searches and compares rows of any kind."""
        return self.messages


@dataclass(frozen=True, slots=True)
class Document:
    """A text to learn as it is, with the row it came from."""

    text: str
    origin: Origin | None = None

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """None: nobody is shown tools."""
        return ()

    @property
    def said(self) -> tuple[Message, ...]:
        """The text as a turn."""
        return (Message("user", self.text),)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two conversations that are equal up to their last answers, of which the chosen one is the better."""

    chosen: Conversation
    rejected: Conversation
    origin: Origin | None = None

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools that both were shown."""
        return self.chosen.tools

    @property
    def said(self) -> tuple[Message, ...]:
        """The shared turns, the chosen answer, the rejected one."""
        return (*self.chosen.messages, self.rejected.messages[-1])


Item = Conversation | Document | Preference
"""What a row holds."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered conversation: either text (control tokens switched off) or one control token by name."""

    text: str = ""
    control: str | None = None
    learn: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What is learned together: ids, and labels that are `IGNORE` where nothing is learned.

    Of a pair the chosen sequence stands in front, and ``num_chosen`` is its length; 0 is no pair.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    num_chosen: int = 0

    @property
    def num_supervised(self) -> int:
        """Number of labels the loss sees. The first position of a row is never predicted."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def sequences(self) -> list[Sample]:
        """What the model sees at once: the chosen and the rejected sequence of a pair, else the sample itself."""
        if not self.num_chosen:
            return [self]
        sides = (slice(None, self.num_chosen), slice(self.num_chosen, None))
        return [Sample(self.input_ids[side], self.labels[side], self.truncated) for side in sides]


_TENSORS = ("input_ids", "where", "targets", "lengths", "position_ids", "cu_seqlens", "sequences")


@dataclass(slots=True)
class Batch:
    """A micro-batch, padded on the right, so that causal attention needs no mask.

    Labels are kept as what predicts them and what is to be predicted: found on the CPU while the batch is made, for
    finding them on a GPU would make the host wait.
    """

    input_ids: Tensor  # (B, T) int64
    where: Tensor  # (N,) int64, b * T + t of each position whose next token is learned
    targets: Tensor  # (N,) int64, that next token
    lengths: Tensor  # (B,) int64, real positions of each row
    step_tokens: int  # supervised tokens, or pairs, of the whole optimizer step, over all ranks and micro-batches
    rows: list[int] = field(default_factory=list)  # index of each sample in its data set, -1 for a filler
    position_ids: Tensor | None = None  # (B, T) int64 of packed rows: 0 where another sequence begins
    cu_seqlens: Tensor | None = None  # (S + 1,) int32 of packed rows: b * T + t of each such place, and B * T
    max_seqlen: int = 0  # of packed rows: positions of the longest sequence
    sequences: Tensor | None = None  # (N,) int64, number of the sequence that each supervised position is in
    given: dict[str, Tensor] = field(default_factory=dict)  # what was computed of these samples before, by name

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        lengths: Tensor,
        *,
        step_tokens: int,
        rows: Sequence[int],
        position_ids: Tensor | None = None,
        sequences: Tensor | None = None,
    ) -> Self:
        """From labels (B, T), not shifted: ``labels[b, t]`` is predicted at ``t - 1``, `IGNORE` where nothing is.

        ``sequences`` (B, T) numbers the sequences in the order of ``rows``, from 0.
        """
        from torch.nn.functional import pad

        targets = pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
        where = (targets != IGNORE).nonzero()[:, 0]
        owners = None if sequences is None else sequences.flatten()[where]
        made = cls(input_ids, where, targets[where], lengths, step_tokens, list(rows), position_ids, sequences=owners)
        return made if position_ids is None else made._with_starts(position_ids)

    @property
    def num_samples(self) -> int:
        """How many samples it has; none where it is a filler."""
        return sum(row >= 0 for row in self.rows)

    def _with_starts(self, position_ids: Tensor) -> Self:
        from torch.nn.functional import pad

        starts = (position_ids.flatten() == 0).nonzero()[:, 0]
        ends = pad(starts, (0, 1), value=position_ids.numel())
        return replace(self, cu_seqlens=ends.int(), max_seqlen=int(ends.diff().max()))

    def to(self, device: torch.device | str) -> Self:
        """The same batch on ``device``. Lightning calls this. From pinned memory to a GPU nobody waits for the copy."""
        non_blocking = str(device).startswith("cuda")
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory. torch's DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, function: Any) -> Self:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        moved = {name: function(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved, given={name: function(tensor) for name, tensor in self.given.items()})


@dataclass(slots=True)
class Loss:
    """Sums over what is learned of one micro-batch; whoever divides knows the whole step."""

    total: Tensor  # () what is minimised, differentiable
    count: Tensor  # () what it is a sum over: supervised tokens, or pairs
    sums: dict[str, Tensor] = field(default_factory=dict)  # () what is measured beside it, by name

    def flat(self) -> Tensor:
        """Count, total and sums as one tensor (2 + sums,), without gradients."""
        from torch import stack

        values = (self.count, self.total, *self.sums.values())
        return stack([value.detach().to(self.total) for value in values])


class UserError(ValueError):
    """Everything that is wrong with what the user gave, all at once: exit code 2, no traceback."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects what users have to mend, so that they see all of it at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the problems of the block, which they end."""
        try:
            yield
        except UserError as error:
            self.found += [problem for problem in error.problems if problem not in self.found]

    def none_in(self, build: Callable[[], T]) -> T | None:
        """What ``build`` gives, or None if it finds problems."""
        with self.noted():
            return build()
        return None

    def raise_if_any(self) -> None:
        """Raise one `UserError` with all of them."""
        if self.found:
            raise UserError(self.found)


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of all ranks' parts of a tensor together: one that DeepSpeed has cut says nothing of it itself."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape
