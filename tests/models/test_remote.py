"""The remote chat model: what it sends, what it reads, and a sentence for each way it fails."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from restill import RemoteChatModel, RestillError
from restill.models import remote, remote_errors
from restill.selftrain.asking import ChatCall, ask

ANSWER = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}


def events(*bodies, done=True):
    lines = [f"data: {json.dumps(body)}\n\n" for body in bodies] + (["data: [DONE]\n\n"] if done else [])
    return "".join(lines).encode()


def delta(reason=None, **fields):
    return {"choices": [{"delta": fields, "finish_reason": reason}]}


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been slept between attempts."""
    slept = []

    async def asleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(remote.time, "sleep", slept.append)
    monkeypatch.setattr(remote.asyncio, "sleep", asleep)
    return slept


def model(handler, **options):
    options = {"base_url": "http://host/v1/", "model": "m", "api_key": "secret", **options}
    return RemoteChatModel(transport=httpx.MockTransport(handler), **options)


def answering(*responses):
    """A handler that gives the responses (or raises the exceptions) one after another, the last for ever."""
    queue, seen = list(responses), []

    def handle(request):
        seen.append(request)
        response = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(response, Exception):
            raise response
        if isinstance(response, dict):
            return httpx.Response(200, json=response)
        # A response can be read once only.
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    handle.seen = seen
    return handle


def test_the_request_carries_messages_options_and_key():
    handle = answering(ANSWER)
    answer = model(handle, temperature=0.5).invoke([HumanMessage("Capital?")], stop=["\n"], max_tokens=9, seed=3)
    (request,) = handle.seen
    assert str(request.url) == "http://host/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Capital?"}],
        "temperature": 0.5,
        "stop": ["\n"],
        "max_tokens": 9,
        "seed": 3,
    }
    assert answer.content == "Paris" and answer.usage_metadata["total_tokens"] == 8
    assert answer.response_metadata["finish_reason"] == "stop"


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    handle = answering(ANSWER)
    chat = model(handle, api_key=None)
    chat.invoke("Hi")
    assert handle.seen[0].headers["authorization"] == "Bearer from-env"
    assert "secret" not in repr(model(handle)) and "from-env" not in repr(chat)


def test_a_spec_names_server_and_model():
    chat = RemoteChatModel.from_spec("http://localhost:8000/v1#qwen")
    assert (chat.base_url, chat.model) == ("http://localhost:8000/v1", "qwen")
    with pytest.raises(RestillError, match="#MODEL"):
        RemoteChatModel.from_spec("http://localhost:8000/v1")
    with pytest.raises(RestillError, match="no address"):
        RemoteChatModel(base_url="localhost", model="m")


def test_tool_calls_go_out_and_come_back():
    call = {"id": "1", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    bad = {"id": "2", "function": {"name": "search", "arguments": "{oops"}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [call, bad]}, "finish_reason": "tool_calls"}]}
    handle = answering(body)

    def search(query: str) -> str:
        """Search."""

    answer = (
        model(handle)
        .bind_tools([search], tool_choice="any")
        .invoke(
            [
                HumanMessage("q"),
                AIMessage("", tool_calls=[{"name": "search", "args": {"query": "y"}, "id": "0"}]),
                ToolMessage("found", tool_call_id="0"),
            ]
        )
    )
    sent = json.loads(handle.seen[0].content)
    assert sent["tool_choice"] == "required" and sent["tools"][0]["function"]["name"] == "search"
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "tool"]
    assert answer.tool_calls[0]["args"] == {"query": "x"} and answer.invalid_tool_calls[0]["id"] == "2"


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(429, json={"error": {"message": "slow down"}}),
        httpx.Response(503, text="busy"),
        httpx.ConnectError("Connection refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("peer closed connection"),
    ],
)
async def test_passing_failures_are_retried(failure, waits):
    assert model(answering(failure, failure, ANSWER)).invoke("Hi").content == "Paris"
    assert (await model(answering(failure, ANSWER)).ainvoke("Hi")).content == "Paris"
    assert len(waits) == 3 and all(0.2 <= seconds <= 1.0 for seconds in waits)


def test_retry_after_is_honoured_up_to_the_limit(waits):
    seconds = httpx.Response(429, headers={"Retry-After": "7"})
    date = httpx.Response(503, headers={"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"})
    model(answering(seconds, date, ANSWER), max_retry_wait=20).invoke("Hi")
    assert waits == [7, 20]


def test_waits_grow_and_vary(waits):
    chat = model(answering(httpx.Response(500)), max_retries=6, max_retry_wait=8)
    with pytest.raises(RestillError, match="tried 7 times"):
        chat.invoke("Hi")
    assert all(c / 2 <= w <= c for w, c in zip(waits, [0.5, 1, 2, 4, 8, 8], strict=True))
    assert len(set(waits)) == 6


FINAL = [
    (httpx.Response(401, json={"error": {"message": "bad key"}}), "401: bad key; check the API key"),
    (httpx.Response(403), "403; check the API key"),
    (httpx.Response(404, json={"error": {"message": "no model"}}), "does 'm' exist"),
    (httpx.Response(400, json={"error": {"message": "maximum context length is 10"}}), "shorten them"),
    (httpx.Response(422, json={"detail": "unknown field"}), "unknown field; the server refuses"),
    (httpx.Response(429, json={"error": {"message": "quota exceeded"}}), "quota is used up"),
    (httpx.Response(307, headers={"location": "https://other"}), "final address"),
    (httpx.Response(200, text="<html>hello</html>"), "not JSON"),
    (httpx.Response(200, json={"error": "x"}), "no choices"),
    (httpx.Response(200, json={"choices": [{}]}), r"no choices\[0\].message"),
    (httpx.Response(200, json=["list"]), "no choices"),
    (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "secure connection"),
]
EXHAUSTED = [
    (httpx.Response(429, json={"error": {"message": "slow"}}), "lower the concurrency"),
    (httpx.Response(502, text="bad gateway"), "try again later"),
    (httpx.ConnectError("[Errno 111] Connection refused"), "is the server running"),
    (httpx.ConnectError("[Errno -2] Name or service not known"), "'host' is unknown"),
    (httpx.ReadTimeout("slow"), "raise timeout"),
    (httpx.ConnectTimeout("slow"), "could not connect"),
    (httpx.ReadError("reset by peer"), "broke"),
]


@pytest.mark.parametrize(("failure", "sentence"), FINAL)
async def test_final_failures_are_told_at_once(failure, sentence, waits):
    handle = answering(failure)
    with pytest.raises(RestillError, match=sentence) as caught:
        model(handle).invoke("Hi")
    assert "secret" not in str(caught.value)
    with pytest.raises(RestillError, match=sentence):
        await model(handle).ainvoke("Hi")
    assert len(handle.seen) == 2 and not waits


@pytest.mark.parametrize(("failure", "sentence"), EXHAUSTED)
def test_exhausted_retries_say_so(failure, sentence, waits):
    handle = answering(failure)
    with pytest.raises(RestillError, match=f"{sentence}.*tried 3 times"):
        model(handle, max_retries=2).invoke("Hi")
    assert len(handle.seen) == 3
    with pytest.raises(RestillError, match=f"{sentence}.*tried once"):
        model(handle, max_retries=0).invoke("Hi")


async def test_streams_arrive_in_pieces_with_usage():
    usage = {"choices": [], "usage": ANSWER["usage"]}
    body = events(delta(role="assistant"), delta(content="Pa"), delta(content="ris"), delta("stop"), usage)
    chat = model(answering(httpx.Response(200, content=b": hello\n\n" + body)))
    pieces = list(chat.stream("Hi"))
    assert [p.content for p in pieces if p.content] == ["Pa", "ris"]
    whole = sum(pieces[1:], pieces[0])
    assert whole.usage_metadata["total_tokens"] == 8 and whole.response_metadata["finish_reason"] == "stop"
    assert "".join([p.content async for p in chat.astream("Hi")]) == "Paris"


def test_a_stream_ends_when_the_server_says_so_and_its_usage_counts_once():
    class Open(httpx.SyncByteStream):
        def __iter__(self):
            totals = [{"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n} for n in (1, 2)]
            yield events(
                delta(content="Pa") | {"usage": totals[0]}, delta("stop", content="ris") | {"usage": totals[1]}
            )
            raise httpx.ReadTimeout("a connection that is kept open")

    chat = model(lambda request: httpx.Response(200, stream=Open()))
    pieces = list(chat.stream("Hi"))
    whole = sum(pieces[1:], pieces[0])
    assert whole.content == "Paris" and whole.usage_metadata["total_tokens"] == 12


def test_half_a_surrogate_pair_is_sent_as_the_replacement_character():
    handle = answering(ANSWER)
    model(handle).invoke("caf\udce9")
    assert json.loads(handle.seen[0].content)["messages"][0]["content"] == "caf\ufffd"
    assert handle.seen[0].headers["content-type"] == "application/json"


def test_a_streamed_tool_call_is_put_together():
    def piece(**fields):
        return delta(tool_calls=[{"index": 0, **fields}])

    body = events(
        piece(id="1", function={"name": "search", "arguments": ""}),
        piece(function={"arguments": '{"que'}),
        piece(function={"arguments": 'ry": "x"}'}),
        delta("tool_calls"),
    )
    pieces = list(model(answering(httpx.Response(200, content=body))).stream("Hi"))
    assert sum(pieces[1:], pieces[0]).tool_calls[0]["args"] == {"query": "x"}


CUTS = [
    (events(delta(content="Pa"), done=False), "cut off"),
    (events(delta(content="Pa"), {"error": {"message": "out of memory"}}), "out of memory"),
    (events(delta(content="Pa")).replace(b"[DONE]", b"{oops"), "not JSON"),
    (events({"choices": [{}]}), "delta"),
]


@pytest.mark.parametrize(("body", "sentence"), CUTS)
async def test_a_broken_stream_fails_after_its_first_text(body, sentence, waits):
    chat = model(answering(httpx.Response(200, content=body)))
    with pytest.raises(RestillError, match=sentence):
        list(chat.stream("Hi"))
    with pytest.raises(RestillError, match=sentence):
        _ = [piece async for piece in chat.astream("Hi")]
    assert not waits


def test_a_stream_is_retried_only_before_its_first_text(waits):
    good = events(delta(content="Paris"), delta("stop"))
    handle = answering(httpx.Response(503), httpx.Response(200, content=b""), httpx.Response(200, content=good))
    assert "".join(p.content for p in model(handle).stream("Hi")) == "Paris"
    assert len(handle.seen) == 3 == len(waits) + 1


class _Server(BaseHTTPRequestHandler):
    failures = 1

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(size))
        if _Server.failures:
            _Server.failures -= 1
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.end_headers()
        elif body.get("stream"):  # promise more than is sent: a cut in the middle
            sent = events(delta(content="Pa"), done=False)
            self.send_response(200)
            self.send_header("Content-Length", str(len(sent) + 100))
            self.end_headers()
            self.wfile.write(sent)
        else:
            sent = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

    def log_message(self, *args):
        pass


async def test_a_real_server_is_asked_retried_and_seen_to_break():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        chat = RemoteChatModel(base_url=url, model="m", max_retries=1)
        assert chat.invoke("Hi").content == "Paris"
        assert (await chat.ainvoke("Hi")).content == "Paris"
        with pytest.raises(RestillError, match="cut off"):
            list(chat.stream("Hi"))
        with pytest.raises(RestillError, match="cut off"):
            _ = [piece async for piece in chat.astream("Hi")]
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RestillError, match="is the server running"):
        RemoteChatModel(base_url=url, model="m", max_retries=0).invoke("Hi")


def test_unreadable_retry_after_falls_back_to_backoff(waits):
    model(answering(httpx.Response(429, headers={"Retry-After": "soon"}), ANSWER)).invoke("Hi")
    assert waits and waits[0] <= remote_errors._FIRST_WAIT


@pytest.mark.parametrize(("status", "refused"), [(400, True), (413, True), (422, True), (401, False), (404, False)])
def test_what_a_server_refuses_is_told_from_what_fails_for_all(status, refused):
    with pytest.raises(RestillError) as caught:
        model(answering(httpx.Response(status, json={"error": "against the rules"}))).invoke("?")
    assert caught.value.refused is refused


def test_one_refused_call_does_not_end_the_others_but_a_failed_one_does():
    def handle(request):
        bad = b"Bad" in request.content
        return httpx.Response(status if bad else 200, json={"error": "no"} if bad else ANSWER)

    calls = [ChatCall(messages=[{"role": "user", "content": text}]) for text in ("Good?", "Bad?")]
    status = 400
    first, second = ask(model(handle), calls, temperature=0.0, max_tokens=9)
    assert first.text and second.text == ""
    with pytest.raises(RestillError, match="400"):
        ask(model(handle), calls[1:], temperature=0.0, max_tokens=9)
    status = 401
    with pytest.raises(RestillError, match="401"):
        ask(model(handle), calls, temperature=0.0, max_tokens=9)
