"""Sixty-four clients at once on the embedded model: everybody hears the answer to what they asked."""

from __future__ import annotations

import asyncio
import os
import random
import time

import psutil
import pytest

from glm_lightning.inference.generation import generate

GARMENTS = [
    f"类型#{kind}*材质#{stuff}*风格#{style}*颜色#{colour}"
    for kind in ("裙", "裤")
    for stuff in ("棉", "亚麻")
    for style in ("简约", "复古")
    for colour in ("蓝色", "红色")
]
PROMPTS = [*GARMENTS, "你好，你是谁？", "who are you?", "hello", "请介绍一下你自己。"]
LONGEST = 48


async def one(client, expected: dict[str, str], until: float, seed: int) -> tuple[int, list[str]]:
    """Ask until the time is over; how many answers there were, and which were others."""
    rng = random.Random(seed)
    count, wrong = 0, []
    while time.monotonic() < until or not count:
        prompt = rng.choice(PROMPTS)
        longest = rng.choice([8, LONGEST])
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=longest,
            stream=True,
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if rng.random() < 0.002:
                await stream.close()  # some leave in the middle
                break
        else:
            count += 1
            if text != expected[f"{longest} {prompt}"]:
                wrong.append(f"{prompt}: {text}, not {expected[f'{longest} {prompt}']}")
    return count, wrong


def answers(served) -> dict[str, str]:
    """What each prompt is answered alone, by the loop that evaluation and chat use."""
    from glm_lightning.inference.loading import GLM

    glm = GLM(model=served.speaker.base, tokenizer=served.tokenizer, template=served.template)
    expected = {}
    for prompt in PROMPTS:
        (answer,) = generate(
            glm.model,
            [glm.prompt([{"role": "user", "content": prompt}])],
            stop_ids=glm.stop_ids,
            pad_id=0,
            max_new_tokens=LONGEST,
        )
        for longest in (8, LONGEST):
            text = glm.tokenizer.decode(answer.ids[:longest])
            expected[f"{longest} {prompt}"] = glm.template.parse(text).content
    return expected


@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_sixty_four_clients(server, seconds):
    expected = answers(server.library._loaded["demo"].served)
    memory: list[float] = []

    async def all_of_them() -> list[tuple[int, list[str]]]:
        until = time.monotonic() + seconds
        async with server.make_async() as client:
            clients = [one(client, expected, until, seed) for seed in range(64)]
            going = asyncio.gather(*clients)
            while not going.done():
                memory.append(psutil.Process(os.getpid()).memory_info().rss / 2**20)
                await asyncio.sleep(seconds / 40)
            return await going

    results = asyncio.run(all_of_them())
    assert not [text for _, wrong in results for text in wrong]
    assert sum(count for count, _ in results) >= 64
    assert server.engine.num_running + server.engine.num_waiting == 0
    assert server.engine.num_bytes == 0
    if seconds > 60:
        later = memory[len(memory) // 2 :]
        assert max(later) - min(later) < 64, memory
