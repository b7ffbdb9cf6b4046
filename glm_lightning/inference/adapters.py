"""Put what lies in an adapter folder on a network: whole, and on the base that it belongs to."""

from __future__ import annotations

import re
import warnings
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from glm_lightning.files import read_json
from glm_lightning.methods.splitting import splits
from glm_lightning.models import Source, prefix
from glm_lightning.models.source import DEMO
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

ABOUT, PEFT = "glm_lightning.json", "adapter_config.json"
_TENSORS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter that `put_on` reads."""
    return (folder / PEFT).is_file() or prefix.is_prefix(folder)


def folder_of(given: str | Path) -> Path:
    """The adapter folder that is given by itself or by its run.

    Raises:
        UserError: there is none.
    """
    folder = Path(given).expanduser()
    if (folder / "config.yaml").is_file() and RunFolder(folder).artefact("adapter").is_dir():
        return RunFolder(folder).artefact("adapter")
    if not folder.is_dir():
        raise UserError(f"adapter is {str(given)!r}: there is no such folder; give that of an adapter, or of its run")
    if not is_adapter(folder):
        raise UserError(
            f"adapter is {str(given)!r}: holds neither {PEFT} nor a prefix of P-tuning v2; give the folder of an "
            "adapter, or of a finished run that made one"
        )
    return folder


def about(folder: Path, file: str = ABOUT, *, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``file`` in ``folder`` says.

    Raises:
        UserError: it cannot be read, or lacks one of the keys that it ``needs``.
    """
    try:
        said = dict(read_json(folder / file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / file}: cannot be read: {error}") from error
    if missing := [key for key in needs if said.get(key) is None]:
        raise UserError(f"{folder / file}: names no {' and no '.join(missing)}; load the base with adapter={folder}")
    return said


def check_base(folder: Path, base: Source) -> None:
    """Refuse the adapter in ``folder`` if it belongs on other weights than ``base``; warn where nobody can tell.

    Of adapters that other tools made nothing is known but a name; where that is a folder here, it must hold a network
    of the same kind.

    Raises:
        UserError: the base is another one.
    """
    if (folder / ABOUT).is_file():
        ours = about(folder, needs=("base", "fingerprint"))
        if ours["fingerprint"] == base.fingerprint:
            return
        was_folder = ours["base"] == DEMO or Path(ours["base"]).is_absolute()
        if was_folder == base.is_folder:
            raise UserError(
                f"{folder}: was trained on other weights than those of {base.path} (its base is {ours['base']}, "
                f"fingerprint {ours['fingerprint']}; this one has {base.fingerprint}); give the base that it "
                "was trained on"
            )
        warnings.warn(
            f"{folder}: was trained on {ours['base']}, and is put on {base.path}: whether these are the same weights "
            "cannot be told",
            stacklevel=2,
        )
    elif (folder / PEFT).is_file():
        named = about(folder, PEFT).get("base_model_name_or_path") or ""
        _check_kind(folder, str(named), base)


def _check_kind(folder: Path, named: str, base: Source) -> None:
    if not (Path(named) / "config.json").is_file():
        return
    kind, here = Source(path=named).config.model_type, base.config.model_type
    if kind != here:
        raise UserError(
            f"{folder}: was trained on a network of type {kind!r} ({named}), and {base.path} is of type {here!r}; "
            "give the base that it was trained on"
        )


def put_on(network: Any, folder: Path, *, hollow: bool = False) -> Any:
    """``network`` with the adapter in ``folder``: PEFT's, or a prefix of P-tuning v2, ours or an official one.

    A ``hollow`` network gets its weights later: nothing of the adapter is made from them.

    Raises:
        UserError: it is torn, or does not fit the network.
    """
    if prefix.is_prefix(folder):
        return prefix.load(network, folder)
    from peft import PeftConfig, PeftModelForCausalLM

    if not any((folder / name).is_file() for name in _TENSORS):
        raise UserError(f"{folder}: holds no whole adapter of PEFT: {' or '.join(_TENSORS)} is missing")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if hollow and splits(getattr(config, "init_lora_weights", True)):
            config.init_lora_weights = True
        # of AdaLoRA, PEFT cuts matrices to the ranks that are left, which must be there for that
        straight = hollow and config.peft_type != "ADALORA"
        adapted = PeftModelForCausalLM(network, config, low_cpu_mem_usage=straight)
        # `PeftModel.from_pretrained` does the same and keeps what it found to itself
        found = adapted.load_adapter(
            str(folder), adapter_name="default", torch_device="cpu" if hollow else None, low_cpu_mem_usage=straight
        )
    except (OSError, SafetensorError, UnpicklingError, JSONDecodeError) as error:
        raise UserError(f"{folder}: holds no whole adapter of PEFT: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its adapter does not fit {type(network).__name__}: {_brief(error)}") from error
    missing, surplus = found.missing_keys, found.unexpected_keys
    if config.is_prompt_learning:
        # a soft prompt is written without what made it, under a name of its own, which PEFT reads by itself
        missing = [name for name in missing if not name.startswith("prompt_encoder.")]
        surplus = [name for name in surplus if name != "prompt_embeddings"]
    problems = [
        f"{folder}: {len(names)} tensors {what}: {_some(names)}; give the base that it was trained on"
        for names, what in (
            (missing, "of the adapter are missing in its file"),
            (surplus, "in its file have no place in this network"),
        )
        if names
    ]
    if problems:
        raise UserError(problems)
    return adapted


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _brief(error: Exception) -> str:
    """One line of a complaint; of torch's about shapes, which name each tensor, the first and their number."""
    pattern = r"size mismatch for (\S+): .*?torch.Size\(\[(.*?)\]\).*?torch.Size\(\[(.*?)\]\)"
    if wrong := re.findall(pattern, str(error)):
        (name, stored, here), *_ = wrong
        return f"{len(wrong)} tensors have another shape, such as {name}: ({stored}), in this network ({here})"
    return " ".join(str(error).split())
