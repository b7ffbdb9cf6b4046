"""Random conversations that a template can express."""

from __future__ import annotations

from dataclasses import replace

from generations import TOKENS
from hypothesis import strategies as st

from glm_lightning.types import Conversation, Message, ToolCall

NAMES = ("chatglm", "chatglm2", "chatglm3", "glm4", "glm4_0414", "glm_z1", "glm4_5", "glm4_7", "glm_edge", "jinja")
CHATML = (  # with all that published ones write
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] and loop.last %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
    '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JINJA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TALKS = ("chatglm", "chatglm2")  # questions and answers only
REASONS = ("glm_z1", "glm4_5", "glm4_7", "jinja")
KNOWS_TOOLS = tuple(name for name in NAMES if name not in (*TALKS, "glm_edge"))
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}

HOSTILE = (*TOKENS["chatglm"], *TOKENS["glm4"], *JINJA_TOKENS, "</s>", "sop")
WORDS = st.text(alphabet="ab 你好，\n", min_size=1, max_size=6).map(str.strip).filter(bool)
TEXTS = st.lists(st.one_of(WORDS, st.sampled_from(HOSTILE)), min_size=1, max_size=4).map("".join)
VALUES = st.one_of(WORDS, st.integers(), st.booleans(), st.lists(WORDS, max_size=2))
ARGUMENTS = st.fixed_dictionaries({}, optional={"a": WORDS | st.sampled_from(["1", "null"]), "b": VALUES, "c": VALUES})
CALLS = st.builds(ToolCall, st.just("find"), ARGUMENTS)


@st.composite
def conversations(draw: st.DrawFn, name: str, texts: st.SearchStrategy[str] = TEXTS) -> Conversation:
    """All that a template can express; the first answer may be switched off."""
    reasoning = st.none() | texts if name in REASONS else st.none()
    tools = name in KNOWS_TOOLS and draw(st.booleans())
    messages = [Message("system", draw(texts))] if name not in TALKS and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(texts)))
        for _ in range(draw(st.integers(0, 2 if tools else 0))):
            calls = tuple(draw(st.lists(CALLS, min_size=1, max_size=2)))
            content = draw(st.just("") | texts)
            messages.append(Message("assistant", content, reasoning=draw(reasoning), tool_calls=calls))
            messages += [Message("tool", draw(texts)) for _ in calls]
        messages.append(Message("assistant", draw(texts), reasoning=draw(reasoning)))
    if draw(st.booleans()) and sum(m.role == "assistant" for m in messages) > 1:
        first = next(i for i, m in enumerate(messages) if m.role == "assistant")
        messages[first] = replace(messages[first], learn=False)
    return Conversation(tuple(messages), tools=(TOOL,) if tools else ())
