"""What tests of encoding share: texts, tokenizers of each template, what is learned."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from glm_lightning import templates
from glm_lightning.data.encoding import Encoded, Encoder
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Message

TEXT = st.lists(
    st.one_of(st.text(alphabet="ab 你好，\n", max_size=6), st.sampled_from(["<|user|>", "<|im_end|>", "</think>"])),
    min_size=1,
    max_size=5,
).map("".join)


def talk(texts: Sequence[str], *, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return Conversation((*([Message("system", system)] if system else []), *messages))


ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM, CHATGLM2 = ("<pad>", "[gMASK]", "<sop>", "<eop>"), ("<unk>", "</s>", "[gMASK]", "sop", "eop")
GLM4 = ("<|endoftext|>", "[gMASK]", "<sop>", "<eop>", *ROLES)
TOKENS = {"chatglm": CHATGLM, "chatglm2": CHATGLM2, "chatglm3": (*CHATGLM2, *ROLES)}
# what is learned of answers, and of the last one, without reasoning
AROUND = {
    "chatglm": ("<sop>{}<eop>", "<sop>{}<eop>"),
    "chatglm2": ("{}</s>", "{}</s>"),
    "chatglm3": ("\n{}<|user|>", "\n{}</s>"),
    "glm4": ("\n{}<|user|>", "\n{}<|user|>"),
    "glm4_0414": ("\n{}<|user|>", "\n{}<|user|>"),
    "glm_z1": ("\n</think>\n{}<|user|>", "\n</think>\n{}<|user|>"),
    "glm4_5": ("\n<think></think>\n{}<|user|>", "\n<think></think>\n{}<|user|>"),
    "glm4_7": ("{}<|user|>", "{}<|user|>"),
    "glm_edge": ("\n{}<|user|>", "\n{}<|user|>"),
    "jinja": ("{}<|im_end|>", "{}<|im_end|>"),
}
NO_SYSTEM = ("chatglm", "chatglm2")
STRIPPED = ("glm_z1", "glm4_5", "glm4_7")


def encoder(tokenizer: Tokenizer, name: str, max_length: int = 10_000) -> Encoder:
    template = templates.find(name, tokenizer, "glm")
    return Encoder(tokenizer=tokenizer, template=template, max_length=max_length)


def learned(tokenizer: Tokenizer, encoded: Encoded) -> str:
    labels = encoded.sample().labels
    return tokenizer.decode([label for label in labels if label != IGNORE], control=True)


def expressible(name: str, conversation: Conversation) -> Conversation:
    messages = conversation.messages
    return Conversation(messages[1:]) if name in NO_SYSTEM and messages[0].role == "system" else conversation


def controls_of(tokenizer: Tokenizer, encoded: Encoded) -> list[int]:
    controls = set(tokenizer.controls.values())
    return [i for i in encoded.input_ids if i in controls]
