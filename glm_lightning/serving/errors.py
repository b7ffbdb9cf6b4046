"""Errors in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response


class RefusedError(Exception):
    """A request that is not answered: the status, and what the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer that says so."""
        return Response(self.body(), status_code=self.status, headers=self.headers, media_type="application/json")

    def body(self) -> str:
        """OpenAI's JSON object."""
        return body(self.message, kind=_kind(self.status), code=self.code, param=self.param)


def body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> str:
    """``{"error": {...}}``."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False)


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
