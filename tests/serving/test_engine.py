"""Places, queues, clients that leave, and ends."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from servers import Told, running

from glm_lightning.inference.rows import Row
from glm_lightning.inference.sampling import GREEDY
from glm_lightning.serving.engine import BusyError, ClosedError, Engine, Limits

LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {number}"}]


@pytest.fixture
def slow(told) -> Told:
    """Every step takes a fiftieth of a second."""
    library = told("glm4", seconds=0.02)
    for number in range(12):
        library.tell(f"\n{number}: {LONG}", question(number))
    return library


def ask(server, number: int, **more):
    return server.client.chat.completions.create(model="glm4", messages=question(number), temperature=0, **more)


def wait(condition, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_answers_share_their_steps(slow):
    with running(slow) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(server, number, max_tokens=40), range(8)))
    assert [answer.choices[0].message.content.partition(":")[0] for answer in answers] == [*"01234567"]
    assert max(slow.network.steps) == 8
    assert len(slow.network.steps) < 8 * 40 / 2


def test_a_row_joins_while_others_run(slow):
    with running(slow) as server:
        stream = ask(server, 0, stream=True)
        first = [next(stream) for _ in range(4)]
        late = ask(server, 1, max_tokens=8)
        assert late.choices[0].message.content.startswith("1: a b")
        assert server.engine.num_running == 1
        rest = list(stream)
    text = "".join(c.delta.content or "" for chunk in [*first, *rest] for c in chunk.choices)
    assert text == f"0: {LONG}"


def test_full_places_are_told_with_the_time_to_come_back(slow):
    with running(slow, Limits(max_rows=1, max_waiting=1)) as server, ThreadPoolExecutor(3) as pool:
        running_now = pool.submit(ask, server, 0)
        wait(lambda: server.engine.num_running == 1)
        waiting = pool.submit(ask, server, 1, max_tokens=3)
        wait(lambda: server.engine.num_waiting == 1)
        with pytest.raises(openai.RateLimitError) as busy:
            ask(server, 2)
        assert int(busy.value.response.headers["retry-after"]) >= 1
        assert busy.value.code == "queue_full"
        assert running_now.result().choices[0].message.content == f"0: {LONG}"
        assert waiting.result().choices[0].message.content.startswith("1:")
        patient = server.client.with_options(max_retries=4)
        assert patient.chat.completions.create(model="glm4", messages=question(3), max_tokens=2)


async def _drained(create, *, stream: bool) -> None:
    answer = await create
    if stream:
        async for _ in answer:
            pass


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_place(slow, stream):
    with running(slow, Limits(max_rows=1)) as server:

        async def leave() -> None:
            async with server.make_async() as client:
                create = client.chat.completions.create(model="glm4", messages=question(0), stream=stream)
                call = asyncio.ensure_future(_drained(create, stream=stream))
                while server.engine.num_running == 0:
                    await asyncio.sleep(0.01)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

        asyncio.run(leave())
        began = time.monotonic()
        wait(lambda: server.engine.num_running == 0)
        assert time.monotonic() - began < len(LONG) * 0.02 / 2
        assert ask(server, 1, max_tokens=3).choices[0].finish_reason == "length"


def test_who_leaves_the_queue_is_never_answered(slow):
    with running(slow, Limits(max_rows=1)) as server:
        stream = ask(server, 0, stream=True)
        next(stream)
        waiting = ask(server, 1, stream=True)
        wait(lambda: server.engine.num_waiting == 1)
        waiting.close()
        text = "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)
        assert text == f"0: {LONG}"
        wait(lambda: server.engine.num_waiting == 0 and server.engine.num_running == 0)
    assert not any("1: a" in str(said) for said in slow.network.steps)


def test_what_runs_ends_before_the_server_does(slow):
    with ThreadPoolExecutor(2) as pool, running(slow, Limits(max_rows=1)) as server:
        first, second = (pool.submit(ask, server, number, max_tokens=30) for number in range(2))
        wait(lambda: server.engine.num_running + server.engine.num_waiting == 2)
        server.stop()
        assert [each.result().usage.completion_tokens for each in (first, second)] == [30, 30]
        with pytest.raises(openai.APIConnectionError):
            ask(server, 3)


def test_a_network_that_fails_fails_its_rows_and_no_others(slow, caplog):
    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    with running(slow) as server:
        stream = ask(server, 0, stream=True)
        next(stream)
        working = slow.network.forward
        slow.network.forward = broken
        with pytest.raises(openai.APIError, match="no memory"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="no memory"):
            ask(server, 1)
        slow.network.forward = working
        assert ask(server, 2, max_tokens=3).choices[0].message.content.startswith("2:")
    assert "question" not in caplog.text


def test_memory_is_kept_free_for_what_runs(slow):
    limits = Limits(max_rows=8, max_tokens=2 * 45)
    with running(slow, limits) as server, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: ask(server, number, max_tokens=20), range(4)))
        assert [answer.usage.completion_tokens for answer in answers] == [20] * 4
        assert max(slow.network.steps) == 2
        with pytest.raises(openai.BadRequestError, match="too large for this server") as large:
            ask(server, 1, max_tokens=200)
        assert large.value.code == "request_too_large"


def test_several_answers_of_one_request_need_as_many_places(slow):
    with running(slow, Limits(max_rows=3)) as server:
        assert len(ask(server, 0, n=3, max_tokens=2).choices) == 3
        with pytest.raises(openai.BadRequestError, match="3 answers at once"):
            ask(server, 0, n=4)


class _Ear:
    def __init__(self) -> None:
        self.done = threading.Event()

    def hear(self, token) -> bool:
        return True

    def end(self, reason) -> None:
        self.done.set()

    def fail(self, error) -> None:
        raise AssertionError from error


def test_a_closed_engine_takes_nothing(slow):
    engine = Engine(Limits(max_rows=2, max_waiting=0))
    engine.start()
    speaker, ears = slow.served.speaker, [_Ear(), _Ear()]
    rows = [Row([5, 6, 7], ear, max_new_tokens=3, stop_ids=(), sampling=GREEDY) for ear in ears]
    engine.submit(speaker, rows)
    with pytest.raises(BusyError):
        engine.submit(speaker, rows[:1])
    assert engine.is_alive
    engine.close()
    assert all(ear.done.is_set() for ear in ears)
    assert not engine.is_alive
    with pytest.raises(ClosedError):
        engine.submit(speaker, rows)


def test_a_long_prompt_does_not_hold_the_others_up(told):
    library = told("glm4", seconds=0.02)
    library.tell(f"\n{LONG}", question(0))
    long = [{"role": "user", "content": "word " * 300}]
    library.tell("\nshort", long)
    with running(library, Limits(piece=64)) as server, ThreadPoolExecutor(1) as pool:
        stream = ask(server, 0, stream=True)
        next(stream)
        before = len(library.network.steps)
        asked = pool.submit(server.client.chat.completions.create, model="glm4", messages=long, temperature=0)
        assert asked.result().choices[0].message.content == "short"
        between = library.network.steps[before:]
        stream.close()
    # a step of the other row stands between two pieces of the prompt
    assert len(between) > 2 * (300 * 4 / 64)
