"""The client against a real server on this machine."""

import json
import time

import pytest

from analysis.labels.by_model import endpoint
from analysis.labels.by_model.chat import Answer, Question
from analysis.labels.by_model.endpoint import Endpoint
from sae.errors import SaescopeError
from tests.analysis.labels.by_model.chat_server import MODEL, ChatServer, Reply, error


def asked(server: ChatServer, prompt: str = "two words", *, url: str = "", model: str = MODEL, **options: float) -> Answer:
    chat = Endpoint(url or server.url, model, pause_s=0.01, **options)
    try:
        return chat.ask(Question(prompt), 50)
    finally:
        chat.close()


def refused(server: ChatServer, **options: object) -> str:
    with pytest.raises(SaescopeError) as refusal:
        asked(server, **options)
    return str(refusal.value)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (endpoint.KEY, "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_an_answer_with_its_tokens() -> None:
    with ChatServer(lambda prompt: f"you said {prompt}") as server:
        assert asked(server) == Answer("you said two words", 2, 4)
        for url in (server.url.removesuffix("/v1"), f"{server.url}/", f"{server.url}/chat/completions"):
            assert asked(server, url=url).n_in == 2
    (request, *_) = server.requests
    assert request == {"model": MODEL, "messages": [{"role": "user", "content": "two words"}], "max_tokens": 50,
                       "temperature": 0}


def test_a_busy_server_is_asked_again() -> None:
    replies = [error(429, "slow down", retry_after="0.3"), error(503, "loading"), Reply(500, b"<html>"),
               Reply(body=b"{", break_off=True)]
    with ChatServer(str.upper, replies=replies) as server:
        assert asked(server).text == "TWO WORDS"
    assert len(server.requests) == 5
    assert server.times[1] - server.times[0] >= 0.3 > server.times[2] - server.times[1]


def test_a_server_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "N_TRIES", 3)
    with ChatServer(str, replies=[error(429, "slow down")] * 3) as server:
        assert {"429", "slow", "3"} <= set(refused(server).replace(":", "").split())
    with ChatServer(str, replies=[error(429, "insufficient_quota: pay first")]) as server:
        assert "pay first" in refused(server) and len(server.requests) == 1


def test_waiting_ends_when_it_is_stopped() -> None:
    with ChatServer(str, replies=[error(429, "slow down", retry_after="200")]) as server:
        chat = Endpoint(server.url, MODEL)
        chat.stop()
        began = time.monotonic()
        with pytest.raises(SaescopeError):
            chat.ask(Question("x"), 5)
        assert time.monotonic() - began < 20
        chat.close()


def test_keys_come_from_the_environment_and_are_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(str, key="sk-right") as server:
        assert endpoint.KEY in refused(server)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")  # meant for another server
        assert "is not set" in refused(server)
        monkeypatch.setenv(endpoint.KEY, "sk-wrong")
        said = refused(server)
        assert "401" in said and "sk-wrong" not in said
        monkeypatch.setenv(endpoint.KEY, "sk-right")
        assert asked(server).n_in == 2
    monkeypatch.setenv(endpoint.KEY, "sk\x07")
    assert "\x07" not in refused(server)
    assert "password" in refused(server, url="http://me:secret@127.0.0.1/v1") and "secret" not in refused(
        server, url="http://me:secret@127.0.0.1/v1")


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, "sk-mine")
    with ChatServer(str) as elsewhere, ChatServer(
            str, replies=[Reply(307, headers={"location": f"{elsewhere.url}/chat/completions"})]) as server:
        assert "307" in refused(server)
    assert not elsewhere.requests


def test_what_is_not_there() -> None:
    with ChatServer(str) as server:
        assert "'other'" in refused(server, model="other")
        assert "/v2" in refused(server, url=server.url.replace("v1", "v2"))
        url = server.url
    assert url in refused(server)  # it has ended
    for text in ("127.0.0.1/v1", "ftp://127.0.0.1", "http://", "://"):
        assert "URL" in refused(server, url=text)


@pytest.mark.parametrize("body", [
    b"", b"hello", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', b'{"choices": [{"text": "old"}]}',
    b"[" * 100_000, b"\xff\xfe", json.dumps({"choices": "x" * 10_000}).encode(),
])
def test_what_is_no_answer(body: bytes) -> None:
    with ChatServer(str, replies=[Reply(body=body)]) as server:
        said = refused(server)
    assert server.url in said and len(said) < 600


def test_what_is_no_answer_among_answers_is_asked_again() -> None:
    good = json.dumps({"choices": [{"message": {"content": "good"}}]}).encode()
    with ChatServer(str, replies=[Reply(body=good), Reply(body=b'{"error": {"code": 429}}'), Reply(body=good)]) as server:
        chat = Endpoint(f"{server.url}?key=sk-query", MODEL, pause_s=0.01)
        assert [chat.ask(Question("x"), 5).text for _ in range(2)] == ["good", "good"]
        server.replies = [error(404, "gone")]
        with pytest.raises(SaescopeError) as gone:
            chat.ask(Question("x"), 5)
        assert "sk-query" not in str(gone.value) + chat.source
        chat.close()


@pytest.mark.parametrize(("content", "text"), [
    (None, ""), (5, ""), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, 3], "ab"), ("\ud800x", "\ud800x"),
])
def test_odd_contents(content: object, text: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": "many"}}).encode()
    with ChatServer(str, replies=[Reply(body=body)]) as server:
        assert asked(server) == Answer(text, None, None)


def test_a_slow_and_an_endless_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "N_TRIES", 2)
    with ChatServer(str, replies=[Reply(wait_s=0.5)] * 2) as server:
        assert "0.1 s" in refused(server, timeout_s=0.1)
    with ChatServer(str, replies=[Reply(body=b"x" * (endpoint._LARGEST_ANSWER + 1))]) as server:
        assert "8 MB" in refused(server)


def test_models_that_want_other_parameters() -> None:
    replies = [
        error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        error(400, "Unsupported value: 'temperature' does not support 0 with this model."),
    ]
    with ChatServer(str, replies=replies) as server:
        assert asked(server).n_in == 2
    assert server.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}
    with ChatServer(str, replies=[error(400, "the prompt is too long")]) as server:
        assert "too long" in refused(server)
