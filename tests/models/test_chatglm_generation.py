"""ChatGLM-6B continues prompts: with a cache, without, in batches, and through our own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_chatglm import EOP, MASK, PAD, SOP, network, padded, prompt, words

from glm_lightning.inference import generation
from glm_lightning.models.chatglm import ChatGLMForCausalLM

NEW = 8
PROMPTS = [prompt(6, 0), prompt(2, 1), [*words(2, 2), MASK, *words(3, 3), SOP], prompt(11, 4), words(3, 5)]


@pytest.fixture(scope="module")
def made() -> ChatGLMForCausalLM:
    return network()


@pytest.fixture(scope="module")
def expected(made: ChatGLMForCausalLM) -> list[list[int]]:
    """The likeliest next id, chosen one by one by a forward pass over everything so far."""
    answers = []
    for row in PROMPTS:
        ids = list(row)
        for _ in range(NEW):
            with torch.no_grad():
                ids.append(int(made(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        answers.append(ids[len(row) :])
    assert len({tuple(answer) for answer in answers}) == len(answers)
    return answers


def greedy(made: ChatGLMForCausalLM, rows: list[list[int]], **arguments: Any) -> list[list[int]]:
    ids, mask = padded(rows, left=True)
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, **arguments}
    output = made.generate(input_ids=ids, attention_mask=mask, **settings)
    result: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return result


@pytest.mark.parametrize(
    "arguments", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=["cache", "no cache", "static"]
)
def test_a_batch_answers_as_its_rows_do_alone(
    made: ChatGLMForCausalLM, expected: list[list[int]], arguments: dict[str, Any]
) -> None:
    assert greedy(made, PROMPTS, **arguments) == expected
    assert [greedy(made, [row], **arguments)[0] for row in PROMPTS] == expected


def test_eager_attention_answers_the_same(expected: list[list[int]]) -> None:
    assert greedy(network(attention="eager"), PROMPTS) == expected


def test_beams_keep_the_rows_apart(made: ChatGLMForCausalLM) -> None:
    together = greedy(made, PROMPTS, num_beams=3)
    assert together == [greedy(made, [row], num_beams=3)[0] for row in PROMPTS]


def test_our_own_functions_answer_the_same(made: ChatGLMForCausalLM, expected: list[list[int]]) -> None:
    answers = generation.generate(made, PROMPTS, stop_ids=[EOP], pad_id=PAD, max_new_tokens=NEW, batch_size=3)
    cut = [ids[: ids.index(EOP)] if EOP in ids else ids for ids in expected]
    assert [answer.ids for answer in answers] == cut
    for row, ids in zip(PROMPTS, cut, strict=True):
        pieces = generation.stream(
            made,
            row,
            tokenizer_decode=lambda ids: "".join(f"<{i}>" for i in ids),
            stop_ids=[EOP],
            max_new_tokens=NEW,
        )
        assert "".join(pieces) == "".join(f"<{i}>" for i in ids)


def test_an_answer_goes_on_behind_its_cache(made: ChatGLMForCausalLM, expected: list[list[int]]) -> None:
    ids = torch.tensor([PROMPTS[0]])
    arguments = {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    first = made.generate(input_ids=ids, max_new_tokens=3, return_dict_in_generate=True, **arguments)
    # two ids that the cache has not seen
    longer = torch.cat([first.sequences, torch.tensor([[expected[0][3]]])], dim=1)
    rest = made.generate(input_ids=longer, cache=first.cache, max_new_tokens=4, **arguments)
    assert rest[0, ids.shape[1] :].tolist() == expected[0]


def test_a_prompt_is_not_cut_into_chunks(made: ChatGLMForCausalLM) -> None:
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        greedy(made, PROMPTS[:1], prefill_chunk_size=3)


def test_positions_are_not_taken_from_outside(made: ChatGLMForCausalLM) -> None:
    with pytest.raises(ValueError, match="generation makes its own"):
        greedy(made, PROMPTS[:1], position_ids=torch.zeros(1, 2, len(PROMPTS[0]), dtype=torch.long))
