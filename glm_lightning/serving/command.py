"""``glm serve``: answer over HTTP as OpenAI's service does."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from glm_lightning.types import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from glm_lightning.serving.engine import Limits
    from glm_lightning.serving.library import Served

KEYS = "GLM_API_KEYS"
"""Environment variable with keys, separated by commas or line breaks."""

_PIECES = {"cpu": 256, "cuda": 2048}
"""Tokens of prompts that are read between two tokens of the answers that run, by the kind of device."""

_PACKAGES = ("fastapi", "uvicorn", "openai", "prometheus_client")
_MIB, _GIB = 1 << 20, 1 << 30


def main(argv: Sequence[str]) -> None:
    """Serve a run, an adapter or a model until Ctrl-C or SIGTERM, which lets running answers end."""
    options = _parser().parse_args(argv)
    _require()
    from glm_lightning.serving import app as http
    from glm_lightning.serving.engine import Engine
    from glm_lightning.serving.library import Library
    from glm_lightning.serving.threads import apart

    keys = _keys(options.api_key_file)
    if problems := list(_problems(options, has_keys=bool(keys))):
        raise UserError(problems)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    library = Library(
        options.source,
        folder=options.adapters,
        name=options.name,
        hub=options.hub,
        dtype=options.dtype,
        quantize=options.quantize,
        device=options.device,
        max_context=options.max_context,
    )
    names = library.check()
    with _socket(options.host, options.port) as listening:
        engine = Engine(apart(lambda: _limits(options, library.load())).result())
        settings = http.Settings(
            keys=keys,
            hosts=None if keys else frozenset({"localhost", "127.0.0.1", "::1", options.host}),
            origins=options.cors,
            max_body=int(options.max_body * _MIB),
            max_new_tokens=options.max_new_tokens,
        )
        lines = _announcement(names, options.host, listening.getsockname()[1], has_keys=bool(keys))
        _run(http.application(library, engine, settings), listening, options, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm serve",
        description="Serve a finished run, an adapter or a model over HTTP, as OpenAI's API does, with a chat page.",
        epilog=f"API keys come from --api-key-file or from the environment variable {KEYS}.",
    )
    parser.add_argument("source", help="run folder, adapter folder, model folder, hub name, or demo")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="folder of adapters or runs to offer as well")
    parser.add_argument("--name", help="name of the model (default: that of its folder)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with API keys, one a line")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="pages that may call the API")
    model = parser.add_argument_group("model")
    model.add_argument("--hub", choices=["huggingface", "modelscope"], help="where a name is looked up")
    model.add_argument("--device", help="such as cuda or cpu (default: the GPU if there is one)")
    model.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="of the weights (default: their own)"
    )
    model.add_argument("--quantize", choices=["nf4", "fp4", "int8", "none"], help="bits of the linear layers")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-context", type=int, help="tokens of prompt and answer together (default: the model's)")
    limits.add_argument(
        "--max-new-tokens", type=int, default=2048, help="longest answer where a request says nothing (default: 2048)"
    )
    limits.add_argument("--max-batch", type=int, default=64, help="answers generated together (default: 64)")
    limits.add_argument("--max-queue", type=int, default=256, help="answers that may wait (default: 256)")
    limits.add_argument(
        "--cache-memory", type=float, metavar="GIB", help="for keys and values (default: half of what is free)"
    )
    limits.add_argument("--max-body", type=float, default=4.0, metavar="MIB", help="largest request (default: 4)")
    limits.add_argument(
        "--shutdown-seconds", type=int, default=60, help="that running answers get at the end (default: 60)"
    )
    return parser


def _require() -> None:
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UserError(f"glm serve needs {', '.join(missing)}, not installed here: pip install 'glm-lightning[serve]'")


def _keys(file: Path | None) -> list[str]:
    """The keys of the file and of the environment.

    Raises:
        UserError: the file cannot be read, or one of the keys is none.
    """
    lines = os.environ.get(KEYS, "").replace(",", "\n").splitlines()
    if file is not None:
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file is {str(file)!r}: cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if file is not None and not keys:
        raise UserError(f"--api-key-file is {str(file)!r}: holds no key; write one a line")
    if any(not key.isascii() or " " in key for key in keys):
        raise UserError("an API key has blanks or characters beyond ASCII, which no header carries; make it of others")
    return keys


def _problems(options: argparse.Namespace, *, has_keys: bool) -> Iterable[str]:
    if not (_is_loopback(options.host) or has_keys):
        yield (
            f"--host is {options.host!r}: others can reach it, so it needs API keys: give --api-key-file, or set {KEYS}"
        )
    for key in ("max_context", "max_new_tokens", "max_batch", "cache_memory", "max_body"):
        value = getattr(options, key)
        if value is not None and value <= 0:
            yield f"--{key.replace('_', '-')} is {value}: must be above 0"
    for key in ("max_queue", "shutdown_seconds"):
        if getattr(options, key) < 0:
            yield f"--{key.replace('_', '-')} is {getattr(options, key)}: must be 0 or more"
    if not 0 <= options.port < 1 << 16:
        yield f"--port is {options.port}: must be from 0 to 65535"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _socket(host: str, port: int) -> socket.socket:
    """Bound before the weights are read, for it may not be free.

    Raises:
        UserError: it is not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port}: {reason}; give another port, or 0 for a free one") from error
    return listening


def _limits(options: argparse.Namespace, served: Served) -> Limits:
    from glm_lightning.serving.engine import Limits
    from glm_lightning.serving.memory import places

    memory = None if options.cache_memory is None else int(options.cache_memory * _GIB)
    return Limits(
        max_rows=options.max_batch,
        max_waiting=options.max_queue,
        max_tokens=places(served.speaker, num_bytes=memory),
        piece=_PIECES.get(served.speaker.device.type, _PIECES["cuda"]),
    )


def _announcement(names: Sequence[str], host: str, port: int, *, has_keys: bool) -> str:
    shown = f"[{host}]" if ":" in host else host
    keys = "; wants an API key" if has_keys else ""
    return f"{', '.join(names)} at http://{shown}:{port}/v1{keys}\nchat page: http://{shown}:{port}/   stop: Ctrl-C"


def _run(app: ASGIApp, listening: socket.socket, options: argparse.Namespace, announcement: str) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Says where it is once it can be called, and not before."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(announcement, flush=True)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=options.shutdown_seconds,
    )
    # uvicorn ends as it was asked to, then raises the signal again for whoever called it: nobody needs to be told
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    Server(config).run(sockets=[listening])
