"""Client for servers with an OpenAI-compatible `POST /v1/chat/completions`: OpenAI, vLLM, Ollama, llama.cpp, LM Studio.

The only file that imports httpx. The API key comes from the environment and is sent only to that server: redirects are
not followed, and messages never contain the key.
"""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from analysis.labels.by_model.chat import Answer, Chat, Question, Refused
from analysis.render.text import plain
from sae.errors import SaescopeError, first_line

KEY = "SAESCOPE_API_KEY"
"""Environment variable with the API key; if unset, OPENAI_API_KEY is used, for api.openai.com only."""
BYTES_PER_TOKEN = 3
N_TRIES = 7
LONGEST_WAIT_S = 300.0
_LARGEST_ANSWER = 8 << 20
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes to retry."""


class _Again(Exception):
    """Retry later; `wait_s` is the delay requested by the server."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait_s = reason, wait_s


class Endpoint(Chat):
    """A model behind a URL. Thread-safe."""

    counted = f"as one token per {BYTES_PER_TOKEN} bytes"

    def __init__(
        self, url: str, model: str, *, n_parallel: int = 4, timeout_s: float = 120.0, pause_s: float = 1.0
    ) -> None:
        """Prepare the client; send nothing yet.

        Args:
            url: `https://api.openai.com/v1`, `http://localhost:11434`, or the full URL of the completions endpoint.
            model: the server's name for the model.
            n_parallel: concurrent requests.
            timeout_s: timeout for one answer.
            pause_s: delay before the first retry if the server gives none; doubled each time.

        Raises:
            SaescopeError: the URL or the API key is invalid.
        """
        self.url, self.model, self.n_parallel = _completions(url), model, n_parallel
        # a query string may contain secrets
        self._shown = str(self.url.copy_with(query=None))
        self.source = f"{model} at {self.url.netloc.decode()}"
        self._timeout_s, self._pause_s = timeout_s, pause_s
        self._key = _key(self.url)
        self._stopping, self._reached, self._answered = threading.Event(), False, False
        self._limit, self._greedy = "max_tokens", True
        try:
            self._client = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)))
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise SaescopeError(f"The proxy set in the environment cannot be used ({first_line(error)}).") from None

    def count(self, text: str) -> int:
        """Estimate the tokens of a text from its bytes, as the server's tokenizer is unknown."""
        return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)

    def stop(self) -> None:
        """Stop retrying."""
        self._stopping.set()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, question: Question, max_tokens: int) -> Answer:
        """Ask, and retry with exponential backoff while the server is busy.

        Raises:
            Refused: the server refused this question.
            SaescopeError: the server can't be reached, rejects the key or the model, or sends an invalid answer.
        """
        last = _Again("stopped")
        for n in range(N_TRIES):
            try:
                return self._once(question.text, max_tokens)
            except _Again as again:
                last = again
            pause = min(60.0, self._pause_s * 2**n) * random.uniform(0.75, 1.25)
            if n < N_TRIES - 1 and self._stopping.wait(pause if last.wait_s is None else last.wait_s):
                break
        raise SaescopeError(f"{self.source} did not answer in {n + 1} tries ({last.reason}); run it again to resume.")

    def _once(self, prompt: str, max_tokens: int) -> Answer:
        limit, greedy = self._limit, self._greedy
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], limit: max_tokens}
        body |= {"temperature": 0} if greedy else {}
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        ends = time.monotonic() + self._timeout_s
        try:
            with self._client.stream("POST", self.url, json=body, headers=headers) as response:
                self._reached = True
                content = b"".join(self._parts(response, ends))
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout) and not self._reached:
                raise SaescopeError(f"{self._shown} cannot be reached: the connection timed out.") from None
            raise _Again(f"no answer in {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol) and not self._reached:
                why = first_line(error)
                raise SaescopeError(f"{self._shown} cannot be reached ({why}); is the server running?") from None
            raise _Again(f"the connection broke: {first_line(error)}") from None
        if response.status_code == 200:
            answer = self._answer(content)
            self._answered = True
            return answer
        self._refused(response, content, limit, greedy)
        return self._once(prompt, max_tokens)

    def _parts(self, response: httpx.Response, ends: float) -> Iterator[bytes]:
        """Stream the body, with limits on its size and time."""
        size = 0
        for part in response.iter_bytes():
            size += len(part)
            if size > _LARGEST_ANSWER:
                raise SaescopeError(f"{self._shown} sent more than {_LARGEST_ANSWER >> 20} MB in one answer.")
            if time.monotonic() > ends:
                raise _Again(f"no complete answer in {self._timeout_s:g} s")
            yield part

    def _refused(self, response: httpx.Response, content: bytes, limit: str, greedy: bool) -> None:
        """Raise for an error response; return if the request should be retried in another form."""
        status, said = response.status_code, self._said(content)
        if status in _AGAIN and "insufficient_quota" not in content.decode(errors="replace"):
            raise _Again(f"status {status}: {said}", _retry_after(response))
        if status in (401, 403):
            what = "rejects the API key" if self._key else f"needs an API key, but {KEY} is not set"
            raise SaescopeError(f"{self._shown} {what} ({status}: {said}); the key is read from {KEY}.")
        if status == 404:
            raise SaescopeError(
                f"{self._shown} returned 404 ({said}): either there is no model {self.model!r}, or this is not the URL of "
                "an OpenAI-compatible server, which usually ends in /v1.")
        # newer OpenAI models have another name for the limit and accept no temperature
        if status == 400 and limit == "max_tokens" and "max_completion_tokens" in said:
            self._limit = "max_completion_tokens"
        elif status == 400 and greedy and "temperature" in said:
            self._greedy = False
        else:
            raise Refused(f"{self._shown} refuses the request ({status}: {said}).")

    def _answer(self, content: bytes) -> Answer:
        try:
            found = json.loads(content)
            text = found["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError):
            said = f"{self._shown} did not answer like an OpenAI-compatible server; it sent: {self._said(content)}"
            # some servers report being busy like this
            raise (_Again(said) if self._answered else SaescopeError(said)) from None
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(text if isinstance(text, str) else "", _number(usage.get("prompt_tokens")),
                      _number(usage.get("completion_tokens")))

    def _said(self, content: bytes) -> str:
        """The server's error message, shortened, with the API key removed."""
        text = content[:10_000].decode(errors="replace")
        try:
            found = json.loads(content)
            error = found.get("error", found) if isinstance(found, dict) else found
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, RecursionError):
            pass
        text = text.replace(self._key, "(the key)") if self._key else text
        return plain(" ".join(text.split()) or "nothing", limit=300)


def _completions(url: str) -> httpx.URL:
    """The URL of the completions endpoint."""
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        found = httpx.URL("")
    if found.scheme not in ("http", "https") or not found.host:
        raise SaescopeError(f"{url!r} is not a server URL; use the form https://api.openai.com/v1.")
    if found.userinfo:
        raise SaescopeError(f"The URL of {found.host} contains a user name or password; put the key into {KEY} instead.")
    path = found.path.rstrip("/") or "/v1"
    return found.copy_with(path=path if path.endswith("/chat/completions") else f"{path}/chat/completions", fragment=None)


def _key(url: httpx.URL) -> str:
    name = KEY if os.environ.get(KEY) else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip() if name == KEY or url.host == "api.openai.com" else ""
    if not (key.isascii() and key.isprintable()):
        raise SaescopeError(f"{name} contains characters that are not valid in a key.")
    return key


def _retry_after(response: httpx.Response) -> float | None:
    """The delay requested by the server in seconds, capped."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text) if text.replace(".", "", 1).isdecimal() else (
            parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _number(found: Any) -> int | None:
    return found if isinstance(found, int) and 0 <= found < 1 << 40 else None
