"""Threads that load networks leave nothing behind."""

import threading

from glm_lightning.serving.threads import apart


def test_the_thread_is_another_and_ends():
    thread = apart(threading.current_thread).result(timeout=10)
    assert thread is not threading.current_thread()
    thread.join(10)
    assert not thread.is_alive()


def test_who_gives_up_does_not_wait():
    begun, go = threading.Event(), threading.Event()
    future = apart(lambda: begun.set() or go.wait(10))
    assert begun.wait(10)
    assert not future.done()
    go.set()
    assert future.result(timeout=10)
