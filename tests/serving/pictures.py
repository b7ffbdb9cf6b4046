"""The README's pictures of a run: the chat page, and TensorBoard.

    python tests/serving/pictures.py outputs/<run> .github

Needs Chromium and a font with Chinese.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
from PIL import Image

QUESTION = "类型#裙*材质#棉*风格#简约"
SERVE = "from glm_lightning.cli import main; main()"
ENDED = "document.querySelectorAll('.assistant .meta').length === {}"
SURE = "const t = document.querySelector('#temperature'); t.value = 0; t.dispatchEvent(new Event('input'))"


@contextlib.contextmanager
def running(*command: str) -> Iterator[str]:
    """A server on a free port; its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, *command, "--port", str(port)]) as server:
        try:
            url = f"http://127.0.0.1:{port}/"
            for _ in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(url):
                    break
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()


def chat(page: browser.Page, run: str, file: Path) -> None:
    """Two turns with the run."""
    with running("-c", SERVE, "serve", run) as url:
        page.look(width=760, height=560)
        page.go(url)
        page.wait("document.querySelector('#model').value")
        page.run(SURE)
        for number, text in enumerate(("你好，你是谁？", QUESTION), start=1):
            page.run("document.querySelector('#text').focus()")
            page.write(text)
            page.press_enter()
            page.wait(ENDED.format(number))
        page.picture(file)


def curves(page: browser.Page, run: str, file: Path) -> None:
    """Losses in TensorBoard, of all runs beside this one."""
    with running("-m", "tensorboard.main", "--logdir", str(Path(run).parent)) as url:
        page.look(width=1100, height=540)
        page.go(f"{url}?tagFilter=^(train|val)%2Floss&smoothing=0#timeseries")
        page.wait("document.querySelectorAll('scalar-card').length > 1", seconds=60)
        page.run("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Settings'))?.click()")
        time.sleep(5)  # until all is drawn
        page.picture(file)


def main() -> None:
    """Take both, with few colours."""
    run, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    with browser.page() as page:
        chat(page, run, folder / "chat.png")
        curves(page, run, folder / "tensorboard.png")
    for name in ("chat.png", "tensorboard.png"):
        picture = Image.open(folder / name).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        picture.save(folder / name, optimize=True)
        print(folder / name, (folder / name).stat().st_size)


if __name__ == "__main__":
    main()
