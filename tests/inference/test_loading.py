"""The Python face: what was learned is what is heard."""

import pytest

import glm_lightning as gl
from glm_lightning.types import IGNORE, UserError

TURNS = [{"role": "user", "content": "类型#裙*材质#棉"}, {"role": "assistant", "content": "一条棉裙 <|user|>"}]


@pytest.fixture(scope="module")
def glm(tiny_glm):
    return gl.load(tiny_glm)


def test_the_prompt_is_the_beginning_of_what_was_trained(glm):
    (sample,) = glm.encode(TURNS)
    prompt = glm.prompt(TURNS[:1])
    assert sample.input_ids[: len(prompt)] == prompt
    assert set(sample.labels[: len(prompt)]) == {IGNORE}
    assert sample.labels[len(prompt) :] == sample.input_ids[len(prompt) :]
    assert sample.input_ids[-1] in glm.stop_ids


def test_text_cannot_become_a_control_token(glm):
    (sample,) = glm.encode(TURNS)
    user = glm.tokenizer.control_id("<|user|>")
    # one at the start of the question, one that ends the answer; the one in the answer's text is text
    assert sample.input_ids.count(user) == 2


def test_streamed_pieces_are_the_generated_answer(glm):
    whole = glm.generate(TURNS[:1], max_new_tokens=24)
    assert glm.template.clean("".join(glm.stream(TURNS[:1], max_new_tokens=24))) == whole
    assert glm.generate(TURNS[:1], max_new_tokens=24) == whole


@pytest.mark.parametrize(
    "messages", [[], [{"role": "bot", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": None}]]
)
def test_bad_messages_are_named(glm, messages):
    with pytest.raises(UserError, match="messages"):
        glm.prompt(messages)


def test_an_unfinished_run_says_how_to_finish_it(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"not finished; .* resume="):
        gl.load(tmp_path)


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, glm_lightning; print(sorted({'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
