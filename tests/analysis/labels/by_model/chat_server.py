"""A server that answers OpenAI's chat format over HTTP, on a port of this machine."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODEL = "small"

Answering = Callable[[str, int], tuple[str, int, int]]
"""(prompt, limit) → text, tokens of the prompt, tokens of the text."""


@dataclass
class Reply:
    """What is sent in place of an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    break_off: bool = False


class Broken(Exception):
    """Raised while answering: the server refuses."""


class TooLong(Exception):
    """Raised while answering: the server does not take this prompt."""


def error(status: int, message: str, **headers: str) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message, "type": "x", "code": None}}).encode(), headers)


def words(text: str) -> int:
    return len(text.split())


class ChatServer(ThreadingHTTPServer):
    """Answers as it is told to; first come the `replies`, one a request."""

    daemon_threads = True

    def __init__(
        self, answer: Callable[[str], str] | None = None, *, answering: Answering | None = None,
        replies: Sequence[Reply] = (), key: str | None = None, pause_s: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answering = answering or (lambda prompt, _: (answer(prompt), words(prompt), words(answer(prompt))))
        self.replies, self.key, self.pause_s = list(replies), key, pause_s
        self.requests: list[dict[str, Any]] = []
        self.answered: list[tuple[int, int]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [one["messages"][0]["content"] for one in self.requests]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that is gone is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.times.append(time.monotonic())
            reply = self.server.replies.pop(0) if self.server.replies else self._refusal(request)
        reply = reply or self._answer(request)
        time.sleep(reply.wait_s)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(reply.body) + 10 * reply.break_off))
        self.end_headers()
        self.wfile.write(reply.body)
        if reply.break_off:
            self.close_connection = True

    def _answer(self, request: dict[str, Any]) -> Reply:
        time.sleep(self.server.pause_s)
        try:
            text, n_in, n_out = self.server.answering(request["messages"][0]["content"], request.get("max_tokens", 0))
        except Broken:
            return error(403, "the server is broken")
        except TooLong:
            return error(400, "the prompt is too long")
        self.server.answered.append((n_in, n_out))
        return Reply(body=json.dumps({
            "id": "1", "object": "chat.completion", "model": MODEL,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out},
        }).encode())

    def _refusal(self, request: dict[str, Any]) -> Reply | None:
        if self.server.key is not None and self.headers["authorization"] != f"Bearer {self.server.key}":
            return error(401, f"Incorrect API key provided: {self.headers['authorization']}")
        if self.path != "/v1/chat/completions":
            return error(404, f"there is nothing at {self.path}")
        if request["model"] != MODEL:
            return error(404, f"The model {request['model']} does not exist")
        return None

    def log_message(self, *_: object) -> None:
        """Says nothing."""
