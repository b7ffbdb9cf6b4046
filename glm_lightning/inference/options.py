"""What commands that answer have in common on their command lines: which model, and how it answers."""

from __future__ import annotations

import argparse

from glm_lightning.files import digest
from glm_lightning.inference.loading import GLM, Found, identity, opened, resolve, with_adapter
from glm_lightning.inference.sampling import Sampling
from glm_lightning.models.quiet import quiet

SOURCE = "run folder, adapter folder, model folder, hub name, or demo"


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Options of `glm_lightning.load`; `add_adapter` adds one more, where there is one model only."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16", "float64"],
        help="type of the weights (default: the checkpoint's own on a GPU, float32 on a CPU)",
    )
    group.add_argument(
        "--quantize",
        choices=["nf4", "fp4", "int8", "none"],
        help="hold the linear layers in so few bits (default: as it was trained)",
    )
    group.add_argument("--device", help="such as cuda or cpu (default: the GPU if there is one)")
    group.add_argument("--hub", choices=["huggingface", "modelscope"], help="where a name is looked up")


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """The option that puts an adapter on a model."""
    parser.add_argument("--adapter", help="adapter folder, or the run that made it, to put on a model")


def found(options: argparse.Namespace) -> Found:
    """The one model that the command line asks for.

    Raises:
        UserError: there is none, or it does not fit together.
    """
    resolved = resolve(options.source, hub=options.hub)
    resolved.base.check()
    return resolved if options.adapter is None else with_adapter(resolved, options.adapter)


def loaded(options: argparse.Namespace, model: Found) -> GLM:
    """The model, held and computing as the command line asks for."""
    quiet()
    return opened(model, dtype=options.dtype, quantize=options.quantize, device=options.device)


def identity_of(options: argparse.Namespace, model: Found, glm: GLM) -> str:
    """Names the weights of ``glm``, which `loaded` has loaded, and the arithmetic that they compute in."""
    return digest(identity(model), str(glm.model.dtype), options.quantize, glm.model.device.type)


def add_sampling(parser: argparse.ArgumentParser, *, seed: int | None) -> None:
    """Options of `Sampling`."""
    group = parser.add_argument_group("the answers")
    group.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy; 0.8 is lively")
    group.add_argument("--top-p", type=float, default=1.0, help="sample from the most likely tokens of this mass")
    group.add_argument(
        "--seed",
        type=int,
        default=seed,
        help=f"of what is random (default: {'another each time' if seed is None else seed})",
    )


def add_length(parser: argparse._ActionsContainer, *, default: int | None, otherwise: str) -> None:
    """The option for the longest answer; the help calls the default what ``otherwise`` says."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=default, help=f"longest answer in tokens (default: {otherwise})"
    )


def add_thinking(parser: argparse.ArgumentParser) -> None:
    """The option that switches reasoning."""
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="reason before answering, or not, where the generation can be switched (default: the generation's own)",
    )


def sampling_of(options: argparse.Namespace) -> Sampling:
    """The sampling that the command line asks for."""
    return Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"is {text}: must be 1 or more")
    return value
