"""Load what was trained, or any model, ready to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch

from glm_lightning import templates, tokenizers
from glm_lightning.config import command
from glm_lightning.data.encoding import Encoder
from glm_lightning.files import read_json
from glm_lightning.inference.generation import generate, stream
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.models import Source
from glm_lightning.models.quiet import quiet
from glm_lightning.models.source import DEMO, WeightsDtype
from glm_lightning.runs import RunFolder
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import ROLES, Conversation, Message, Sample, UserError

Turns = Sequence[Mapping[str, Any]]
"""OpenAI's messages: ``[{"role": "user", "content": "..."}, ...]``."""

UNLIMITED = 1 << 30


@final
class GLM:
    """A network with its tokenizer and its template: what was learned is what is heard."""

    def __init__(self, *, model: Any, tokenizer: Tokenizer, template: Template) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self._encoder = Encoder(tokenizer=tokenizer, template=template, max_length=UNLIMITED)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer."""
        return [self.tokenizer.control_id(name) for name in self.template.stop_tokens]

    def encode(self, messages: Turns) -> list[Sample]:
        """The training view: ids and labels (`types.IGNORE` where nothing is learned) of each sample."""
        return [encoded.sample() for encoded in self._encoder.encode([conversation(messages)])]

    def prompt(self, messages: Turns) -> list[int]:
        """The generation view: ids up to where the answer begins."""
        return prompt_ids([self.template.prompt(conversation(messages))], self.tokenizer)[0]

    def generate(
        self,
        messages: Turns,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Answer ``messages``; temperature 0 is greedy."""
        (answer,) = generate(
            self.model,
            [self.prompt(messages)],
            stop_ids=self.stop_ids,
            pad_id=self.tokenizer.pad_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return self.template.clean(self.tokenizer.decode(answer.ids))

    def stream(
        self,
        messages: Turns,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The same, piece by piece, in whole characters. White space at the start is left out."""
        pieces = stream(
            self.model,
            self.prompt(messages),
            tokenizer_decode=self.tokenizer.decode,
            stop_ids=self.stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        started = False
        for piece in pieces:
            text = piece if started else piece.lstrip()
            if text:
                started = True
                yield text


def load(
    source: str | Path,
    *,
    dtype: WeightsDtype | None = None,
    adapter: str | Path | None = None,
    device: str | None = None,
) -> GLM:
    """Load a finished run, an adapter folder, a model folder, a name on the hub, or ``demo``.

    Args:
        source: what to load.
        dtype: type of the weights; None is the checkpoint's own on a GPU, and float32 on a CPU.
        adapter: a PEFT adapter folder to put on top.
        device: such as ``cuda`` or ``cpu``; None is the GPU if there is one.

    Raises:
        UserError: there is nothing to load, or it does not fit together.
    """
    quiet()
    base, folder, files = _resolve(source)
    adapter = adapter if adapter is not None else folder
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizers.load(files, revision=base.revision)
    template = templates.find(base.template, tokenizer, base.config.model_type)
    chosen = dtype or ("float32" if device == "cpu" else base.dtype)
    model: Any = replace(base, dtype=chosen).load()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return GLM(model=model.to(device).eval(), tokenizer=tokenizer, template=template)


def conversation(messages: Turns) -> Conversation:
    """OpenAI's messages as a conversation.

    Raises:
        UserError: a role is unknown or a content is no text.
    """
    problems = [
        f"messages[{index}]: needs a role of {', '.join(ROLES)} and a text as content, not {dict(message)!r}"
        for index, message in enumerate(messages)
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str)
    ]
    if problems or not messages:
        raise UserError(problems or "messages: is empty; give at least one turn")
    return Conversation(tuple(Message(m["role"], m["content"], m.get("loss")) for m in messages))


def _resolve(source: str | Path) -> tuple[Source, Path | None, str]:
    """The base network, the adapter folder if there is one, and where the tokenizer lies."""
    folder = Path(source).expanduser()
    if str(source) != DEMO and (folder / "config.yaml").is_file():
        return _resolve_run(RunFolder(folder.absolute()))
    if (folder / "adapter_config.json").is_file():
        return _resolve_adapter(folder)
    if (folder / "glm_lightning.json").is_file():
        base = Source(path=str(folder), template=_ours(folder)["template"])
    else:
        base = Source(path=str(source))
    return base, None, base.location


def _resolve_run(run: RunFolder) -> tuple[Source, Path | None, str]:
    if run.artefact("adapter").is_dir():
        return _resolve_adapter(run.artefact("adapter"))
    folder = run.artefact("model")
    if folder.is_dir():
        return Source(path=str(folder), template=_ours(folder)["template"]), None, str(folder)
    raise UserError(f"{run.path}: this run is not finished; go on with it: {command()} resume={run.path}")


def _ours(folder: Path) -> dict[str, Any]:
    """What a run wrote beside its weights.

    Raises:
        UserError: it cannot be read.
    """
    file = folder / "glm_lightning.json"
    try:
        return dict(read_json(file))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _resolve_adapter(folder: Path) -> tuple[Source, Path | None, str]:
    if not (folder / "glm_lightning.json").is_file():
        # made by another tool: PEFT names the base, the tokenizer is the base's
        base = Source(path=read_json(folder / "adapter_config.json")["base_model_name_or_path"])
        return base, folder, base.location
    ours = _ours(folder)
    base = Source(path=ours["base"], revision=ours["revision"], template=ours["template"])
    if base.fingerprint != ours["fingerprint"]:
        raise UserError(
            f"{folder}: was trained on other weights than those in {ours['base']} now "
            f"(fingerprint {ours['fingerprint']}, now {base.fingerprint}); put those back there"
        )
    return base, folder, str(folder)
