"""Load what was trained, or any model, ready to answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch

from glm_lightning import templates, tokenizers
from glm_lightning.config import command
from glm_lightning.data.encoding import Encoder
from glm_lightning.files import digest, sampled_fingerprint
from glm_lightning.inference import adapters
from glm_lightning.inference.generation import context_of, generate, stream
from glm_lightning.inference.messages import Definitions, Turns, conversation
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.inference.sampling import Sampling
from glm_lightning.models import Source, prefix
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.quiet import quiet
from glm_lightning.models.source import DEMO, Hub, WeightsDtype
from glm_lightning.runs import RunFolder
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message, Sample, UserError

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

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None if nothing says so."""
        return context_of(self.model)

    def encode(self, messages: Turns, tools: Definitions | None = None) -> list[Sample]:
        """The training view: ids and labels (`types.IGNORE` where nothing is learned) of each sample."""
        return [encoded.sample() for encoded in self._encoder.encode([conversation(messages, tools)])]

    def prompt(self, messages: Turns, tools: Definitions | None = None, *, thinking: bool | None = None) -> list[int]:
        """The generation view: ids up to where the answer begins; ``thinking`` switches reasoning on and off."""
        return prompt_ids([self.template.prompt(conversation(messages, tools), thinking=thinking)], self.tokenizer)[0]

    def parse(self, text: str, tools: Definitions | None = None, *, thinking: bool | None = None) -> Message:
        """What a generated text says: content, reasoning, tool calls; ``thinking`` as it was given to `prompt`."""
        return self.template.parse(text, thinking=thinking, tools=tools or ())

    def generate(
        self,
        messages: Turns,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        tools: Definitions | None = None,
        thinking: bool | None = None,
    ) -> str:
        """Answer ``messages``; temperature 0 is greedy. Reasoning is left out, tool calls are JSON, a line each."""
        (answer,) = generate(
            self.model,
            [self.prompt(messages, tools, thinking=thinking)],
            stop_ids=self.stop_ids,
            pad_id=self.tokenizer.pad_id,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        )
        return self.template.clean(self.tokenizer.decode(answer.ids), thinking=thinking, tools=tools or ())

    def stream(
        self,
        messages: Turns,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        tools: Definitions | None = None,
        thinking: bool | None = None,
    ) -> Iterator[str]:
        """All that is generated, piece by piece, in whole characters: with reasoning and calls, for `parse`.

        White space at the start is left out.
        """
        yield from self.stream_prompt(
            self.prompt(messages, tools, thinking=thinking),
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        )

    def stream_prompt(
        self, prompt_ids: list[int], *, max_new_tokens: int, sampling: Sampling, draw: int = 0
    ) -> Generator[str, None, None]:
        """As `stream`, behind ids that `prompt` has made; ``draw`` numbers the answers that one seed draws."""
        pieces = stream(
            self.model,
            prompt_ids,
            tokenizer_decode=self.tokenizer.decode,
            stop_ids=self.stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            draw=draw,
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
    quantize: Quantize | Literal["none"] | None = None,
    adapter: str | Path | None = None,
    device: str | None = None,
    hub: Hub | None = None,
) -> GLM:
    """Load a finished run, an adapter folder, a model folder, a name on the hub, or ``demo``.

    Args:
        source: what to load.
        dtype: type of the weights; None is the checkpoint's own on a GPU, and float32 on a CPU.
        quantize: hold the linear layers in ``nf4``, ``fp4`` or ``int8``; None is as it was trained, ``none`` in full.
        adapter: an adapter folder to put on top (PEFT's, or a prefix of P-tuning v2, ours or an official one), or the
            run that made it.
        device: such as ``cuda`` or ``cpu``; None is the GPU if there is one.
        hub: where a name is looked up, ``huggingface`` (None) or ``modelscope``.

    Raises:
        UserError: there is nothing to load, or it does not fit together.
    """
    quiet()
    found = resolve(source, hub=hub)
    return opened(
        found if adapter is None else with_adapter(found, adapter), dtype=dtype, quantize=quantize, device=device
    )


def opened(
    found: Found,
    *,
    dtype: WeightsDtype | None = None,
    quantize: Quantize | Literal["none"] | None = None,
    device: str | None = None,
) -> GLM:
    """What was found, ready to answer; the options are those of `load`."""
    base, folder, files = found
    tokenizer, template = words(base, files)
    model = bare(base, dtype=dtype, quantize=quantize, device=device)
    return GLM(model=model if folder is None else adapted(model, folder), tokenizer=tokenizer, template=template)


def bare(
    base: Source,
    *,
    dtype: WeightsDtype | None = None,
    quantize: Quantize | Literal["none"] | None = None,
    device: str | None = None,
) -> Any:
    """The network of ``base`` in evaluation mode, without any adapter; what is None is chosen as `load` says."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dtype or ("float32" if device == "cpu" else base.dtype)
    held = base.quantize if quantize is None else None if quantize == "none" else quantize
    network: Any = replace(base, dtype=chosen, quantize=held).load(device=device)
    # quantised weights lie where they were loaded to
    return (network.to(device) if held is None else network).eval()


def adapted(network: Any, folder: Path) -> Any:
    """A network in evaluation mode with the adapter in ``folder`` put on it, where the network lies."""
    device, is_quantized = network.device, getattr(network, "is_quantized", False)
    network = adapters.put_on(network, folder)
    return (network if is_quantized else network.to(device)).eval()


def identity(found: Found) -> str:
    """Names the weights that `opened` loads: those of the base, and the files of the adapter."""
    files = [] if found.adapter is None else sorted(file for file in found.adapter.iterdir() if file.is_file())
    return digest(found.base.fingerprint, [(file.name, sampled_fingerprint(file)) for file in files])


def base_of(source: str | Path, *, hub: Hub | None = None) -> Found | None:
    """What a run or an adapter has begun with, to be asked in the same way; None for what is no fine-tuned model."""
    folder = Path(source).expanduser()
    if str(source) != DEMO and (folder / "config.yaml").is_file() and RunFolder(folder).artefact("model").is_dir():
        folder = RunFolder(folder).artefact("model")
    if (folder / adapters.ABOUT).is_file() and not adapters.is_adapter(folder):
        base = _base_in(adapters.about(folder, needs=("base",)))
        return Found(base, None, base.location)
    found = resolve(source, hub=hub)
    return None if found.adapter is None else Found(found.base, None, found.base.location)


def with_adapter(found: Found, given: str | Path) -> Found:
    """``found`` with the adapter in ``given``, and with the template and the quantisation that it was trained with.

    Raises:
        UserError: it has an adapter already, there is none in ``given``, or it belongs on other weights.
    """
    if found.adapter is not None:
        raise UserError(
            f"adapter is {str(given)!r}: what it shall be put on has an adapter already ({found.adapter}); give its "
            f"base, {found.base.path}, or leave adapter out"
        )
    folder = adapters.folder_of(given)
    adapters.check_base(folder, found.base)
    if not (folder / adapters.ABOUT).is_file():
        return found._replace(adapter=folder)
    ours = adapters.about(folder)
    known = ("template", "quantize", "double_quantize", "name_prefix", "num_layers", "layers")
    return Found(replace(found.base, **{key: ours[key] for key in known if key in ours}), folder, str(folder))


def load_words(source: str | Path, *, template: str = "auto", hub: Hub | None = None) -> tuple[Tokenizer, Template]:
    """Tokenizer and template of what `load` loads; no weight is read.

    ``template`` is the name of another template than the one that belongs to it; ``hub`` is where a name is looked up.

    Raises:
        UserError: there is nothing to load, or it does not fit together.
    """
    quiet()
    found = resolve(source, hub=hub)
    return words(found.base if template == "auto" else replace(found.base, template=template), found.files)


def words(base: Source, files: str) -> tuple[Tokenizer, Template]:
    """The tokenizer that lies in ``files`` (a folder or a hub name), and the template of ``base``.

    Raises:
        UserError: they do not belong to the network.
    """
    tokenizer = tokenizers.load(files, revision=base.revision)
    if problems := tokenizers.check(tokenizer, base.config):
        raise UserError(
            [f"model.path is {base.path!r}: {problem}; they do not belong together" for problem in problems]
        )
    template = templates.find(base.template, tokenizer, base.config.model_type, generation=base.generation)
    return tokenizer, template


class Found(NamedTuple):
    """What a source stands for."""

    base: Source
    adapter: Path | None
    files: str  # where the tokenizer lies


def resolve(source: str | Path, *, hub: Hub | None = None) -> Found:
    """The base network of a run, an adapter, a model folder or a name, its adapter, and where the tokenizer lies.

    ``hub`` is where a name is looked up; None is Hugging Face's.

    Raises:
        UserError: there is nothing, or it does not fit together.
    """
    folder = Path(source).expanduser()
    if str(source) != DEMO and (folder / "config.yaml").is_file():
        return _resolve_run(RunFolder(folder.absolute()))
    if prefix.is_official(folder):
        raise UserError(f"{folder}: is a prefix of P-tuning v2 without its base; load the base with adapter={folder}")
    if adapters.is_adapter(folder):
        return _resolve_adapter(folder)
    if (folder / adapters.ABOUT).is_file():
        return _resolve_model(folder)
    base = Source(path=str(source), hub=hub or "huggingface")
    return Found(base, None, base.location)


def _resolve_run(run: RunFolder) -> Found:
    if run.artefact("adapter").is_dir():
        return _resolve_adapter(run.artefact("adapter"))
    if run.artefact("model").is_dir():
        return _resolve_model(run.artefact("model"))
    raise UserError(f"{run.path}: this run is not finished; go on with it: {command()} resume={run.path}")


def _resolve_model(folder: Path) -> Found:
    base = Source(path=str(folder), template=adapters.about(folder, needs=("template",))["template"])
    return Found(base, None, str(folder))


def _resolve_adapter(folder: Path) -> Found:
    if not (folder / adapters.ABOUT).is_file():
        # made by another tool: PEFT names the base, the tokenizer is the base's
        named = adapters.about(folder, adapters.PEFT, needs=("base_model_name_or_path",))
        base = Source(path=named["base_model_name_or_path"])
        return Found(base, folder, base.location)
    ours = adapters.about(folder, needs=("base", "fingerprint"))
    base = _base_in(ours)
    if base.fingerprint != ours["fingerprint"]:
        raise UserError(
            f"{folder}: was trained on other weights than those in {ours['base']} now "
            f"(fingerprint {ours['fingerprint']}, now {base.fingerprint}); put those back there"
        )
    return Found(base, folder, str(folder))


def _base_in(ours: dict[str, Any]) -> Source:
    """The base that a file of ours names."""
    known = ("hub", "revision", "template", "quantize", "double_quantize", "name_prefix", "num_layers", "layers")
    return Source(path=ours["base"], **{key: ours[key] for key in known if key in ours})
