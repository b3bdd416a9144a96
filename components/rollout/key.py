"""A key for all that a vLLM server serves: `vllm serve --middleware components.rollout.key.RequireKey`.

vLLM's own --api-key guards what begins with /v1, /v2, /inference and /cohere
(vllm/entrypoints/serve/middleware/authenticate.py in 0.32) and leaves the routes open that renew weights.
"""

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

KEY = "VLLM_API_KEY"  # vLLM's own name for it
HEALTH = "/health"  # tells nothing, and lets others wait for a server to be ready

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class RequireKey:
    """ASGI middleware that refuses whoever does not bring the key of the environment.

    Raises:
        ValueError: the environment has no key.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        if not os.environ.get(KEY):
            raise ValueError(f"{KEY} is empty")
        self.app, self.expected = app, bearer(os.environ[KEY])["Authorization"].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass that brings the key or asks for the server's health; answer others with a refusal."""
        if scope["type"] not in ("http", "websocket") or scope["path"] == HEALTH or self._brought(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"the key is missing or wrong"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _brought(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        return hmac.compare_digest(headers.get(b"authorization", b""), self.expected)


def bearer(key: str | None) -> dict[str, str]:
    """The header that brings a key, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}
