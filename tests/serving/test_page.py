"""The chat page in a real browser, where there is one."""

from __future__ import annotations

import browser
import pytest
from servers import running

pytestmark = pytest.mark.skipif(browser.FOUND is None, reason="there is no Chromium")

SURE = "const t = document.querySelector('#temperature'); t.value = 0; t.dispatchEvent(new Event('input'))"
ENDED = "document.querySelectorAll('.assistant .meta').length === {}"
LAST = "[...document.querySelectorAll('.assistant .text')].at(-1).innerText"


@pytest.fixture(scope="module")
def page():
    with browser.page() as tab:
        yield tab


def opened(page, url: str, *, width: int = 1000, language: str = "en-US") -> None:
    page.errors.clear()
    page.look(width=width, height=800, language=language)
    page.go(f"{url}/")
    page.run("sessionStorage.clear()")
    page.go(f"{url}/")


def say(page, text: str) -> None:
    page.run("document.querySelector('#text').focus()")
    page.write(text)
    page.press_enter()


def test_a_conversation(server, page):
    opened(page, server.url)
    page.wait("document.querySelector('#model').value === 'demo'")
    assert page.run("document.querySelector('#about').innerText") == "demo answers"
    page.run(SURE)
    say(page, "你好，你是谁？")
    page.wait(ENDED.format(1))
    assert page.run(LAST) == "我是小格，一个写商品文案的助手。"
    assert page.run("document.querySelector('.assistant .who').innerText") == "demo"
    assert "tokens" in page.run("document.querySelector('.assistant .meta').innerText")
    say(page, "<img src=x onerror=alert(1)>")
    page.wait(ENDED.format(2))
    assert page.run("document.querySelectorAll('main img').length") == 0
    assert page.run("document.querySelectorAll('.user .text')[1].innerText") == "<img src=x onerror=alert(1)>"
    page.run("document.querySelector('#new').click()")
    page.wait("document.querySelectorAll('.turn').length === 0")
    assert not page.errors


def test_an_answer_comes_in_pieces_and_can_be_stopped(told, page):
    library = told("glm4", seconds=0.05)
    library.tell("\n" + "word " * 200, [{"role": "user", "content": "hello"}])
    with running(library) as server:
        opened(page, server.url)
        page.wait("document.querySelector('#model').value === 'glm4'")
        page.run(SURE)
        say(page, "hello")
        page.wait(f"{LAST}.startsWith('word word')")
        assert page.run("document.querySelector('#send').title") == "Stop"
        page.run("document.querySelector('#send').click()")
        page.wait(ENDED.format(1))
        assert "stopped" in page.run("document.querySelector('.assistant .meta').innerText")
        assert page.run(f"{LAST}.length") < 900
        page.run("new Promise(done => setTimeout(done, 500))")
        assert server.engine.num_running == 0


def test_reasoning_stands_apart_and_code_is_code(told, page):
    library = told("glm4_7")
    text = "hm, well</think>Look:\n```python\nx = '<b>'\n```\nand `y`"
    library.tell(text, [{"role": "user", "content": "hello"}])
    with running(library) as server:
        opened(page, server.url)
        page.wait("document.querySelector('#model').value === 'glm4_7'")
        page.run(SURE)
        say(page, "hello")
        page.wait(ENDED.format(1))
        assert page.run("document.querySelector('details div').textContent") == "hm, well"
        assert page.run("document.querySelector('.assistant .text pre code').innerText") == "x = '<b>'"
        assert page.run("document.querySelector('.assistant .text p code').innerText") == "y"


def test_a_phone_in_chinese_that_has_to_give_a_key(demo, page):
    with running(demo, keys=("the-key",)) as server:
        opened(page, server.url, width=390, language="zh-CN")
        page.wait("document.querySelector('#about').innerText.includes('API 密钥')")
        say(page, "你好")
        page.wait("document.querySelector('#settings').open")
        page.run("document.querySelector('#key').focus()")
        page.write("the-key")
        page.run("document.querySelector('#settings .done').click()")
        page.wait("document.querySelector('#model').value === 'demo'")
        page.run(SURE)
        say(page, "你好，你是谁？")
        page.wait(ENDED.format(2))
        assert page.run(LAST) == "我是小格，一个写商品文案的助手。"
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("document.querySelector('#send').getBoundingClientRect().bottom <= innerHeight")


def test_nothing_comes_from_elsewhere(server, page):
    opened(page, server.url)
    page.wait("document.querySelector('#model').value")
    hosts = page.run("performance.getEntriesByType('resource').map(each => new URL(each.name).host)")
    assert set(hosts) == {f"127.0.0.1:{server.port}"}
    assert not page.errors
