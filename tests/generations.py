"""Control tokens that the generations' tokenizers have."""

from __future__ import annotations

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
TOKENS = {
    "chatglm": ("<pad>", "[MASK]", "[gMASK]", "<sop>", "<eop>"),
    "chatglm2": ("<unk>", "</s>", "[MASK]", "[gMASK]", "sop", "eop"),
    "chatglm3": ("<unk>", "</s>", "[MASK]", "[gMASK]", "sop", "eop", *ROLES),
    "glm4": ("<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<eop>", *ROLES),
}
