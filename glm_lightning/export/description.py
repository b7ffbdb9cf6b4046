"""What lies beside the weights: configurations, tokenizer, chat template, and the card that says what was done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from glm_lightning.export.merging import Measured, Merging
from glm_lightning.files import write_json, write_text
from glm_lightning.models.source import Source, settle_sampling
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer

_USE = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
messages = [{{"role": "user", "content": "你好"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def write_config(merging: Merging, folder: Path) -> None:
    """config.json: that of transformers, or that of the official layout."""
    network: Any = merging.streamed.network
    config = network.config
    config.dtype, config.architectures = merging.dtype, [type(network).__name__]
    if merging.settings is not None:
        config.quantization_config = merging.settings.to_dict()
    if merging.official is None:
        config.save_pretrained(folder)
    else:
        write_json(folder / "config.json", merging.official.raw_config(config, original=merging.origin.raw_config))


def write_generation_config(merging: Merging, folder: Path, *, tokenizer: Tokenizer, template: Template) -> None:
    """generation_config.json, with what ends an answer."""
    config = _generation_config(merging.source, merging.streamed.network)
    config.eos_token_id = [tokenizer.control_id(name) for name in template.stop_tokens]
    config.pad_token_id = tokenizer.pad_id
    config.save_pretrained(folder)


def _generation_config(source: Source, network: Any) -> GenerationConfig:
    """How its makers sample from the base, where they say so."""
    try:
        config = GenerationConfig.from_pretrained(source.location, revision=source.revision or "main")
    except OSError:
        config = network.generation_config
    settle_sampling(config)
    return config


def write_words(merging: Merging, folder: Path, *, tokenizer: Tokenizer, template: Template) -> None:
    """Tokenizer files and chat template; for the official layout, files and code as its makers give them.

    Their code is for the tools that run it; it is never run here.
    """
    if merging.official is None:
        tokenizer.save(folder)
        write_chat_template(template, folder)
    else:
        tokenizer.save_official(folder)
        for file in Path(merging.origin.location).glob("*.py"):
            shutil.copy(file, folder)
    write_json(folder / "glm_lightning.json", {"template": template.name})


def write_chat_template(template: Template, folder: Path) -> None:
    """The template for transformers and for servers, which find it under this name."""
    if template.chat_template is not None:
        write_text(folder / "chat_template.jinja", template.chat_template)


def write_card(merging: Merging, folder: Path, *, trained: Path, told: str) -> None:
    """The card in ``trained`` of what was trained, if there is one, with what the export did."""
    card = trained / "README.md"
    name = Path(merging.source.path).name
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
    text = text.replace("library_name: peft", "library_name: transformers")
    use = _USE.format(folder="path/to/this/folder") if merging.loads_in_transformers else ""
    write_text(folder / "README.md", f"{text}\nWritten by `glm export`: {told}.\n{use}")


def told(merging: Merging, measured: Measured) -> str:
    """What was done to the weights and what it changed, in a sentence."""
    wanted = merging.wanted
    done = ["merged" if merging.is_adapted else "the model as it is"]
    if wanted.blend != 1:
        done.append(f"{wanted.blend:g} of the way from the base to what was trained")
    if wanted.dtype != "auto":
        done.append(f"in {wanted.dtype}")
    if wanted.quantize is not None:
        done.append(f"linear layers held in {wanted.quantize}")
    text = (
        f"{', '.join(done)}: the largest difference of a logit is {measured.difference:.2e}, and the most likely token "
        f"is the same at {measured.agreeing} of {measured.tokens} positions of {measured.prompts} prompts"
    )
    if measured.unrounded < measured.difference / 2:
        text += f"; that comes from {_rounding(merging)}: before, the difference is {measured.unrounded:.2e}"
    if measured.from_quantized is not None:
        text += (
            "; the adapter was learned on a quantised base and is merged into the full-precision one, which changes "
            f"the logits by up to {measured.from_quantized:.2e}"
        )
    return text


def _rounding(merging: Merging) -> str:
    """What happens to the weights last."""
    if merging.wanted.quantize is not None:
        return f"holding the linear layers in {merging.wanted.quantize}"
    return f"rounding the weights to {str(merging.dtype).removeprefix('torch.')}"
