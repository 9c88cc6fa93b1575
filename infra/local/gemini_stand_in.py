"""A Gemini that runs on this machine: the real wire protocol, and a picture worth looking at.

    python -m infra.local.gemini_stand_in --port 8100 --latency 1.5

It answers ``POST /v1beta/models/{model}:generateContent`` on 127.0.0.1 as Google does, refusals
included, and paints a landscape that depends on the prompt, with the prompt written in it. Words
in the prompt make it misbehave: ``[fail:NAME]`` with a name of ``FAILURES``, ``[slow:2.5]`` for so
many seconds before the answer. Both may stand anywhere in the prompt.

Where Google's behaviour is imitated, it is that of generativelanguage.googleapis.com, v1beta.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import select
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

from PIL import Image

from infra.lifetime import Runs
from infra.local.landscape import SIZES, paint

__all__ = ["FAILURES", "SIZES", "Answer", "GeminiStandIn", "Received"]

UNASKED_RATIO = "4:3"

LONGEST_S = 60.0
MAX_REQUEST_BYTES = 1024 * 1024
REMEMBERED = 1_000
_ENDLESS_BYTES = 1024 * 1024 * 1024
_DRIP_S = 0.2
_POLL_S = 0.05
_MIN_SERVER_TIMEOUT_S = 10

_PATH = re.compile(r"/v1beta/models/([^/:]+):generateContent")
_FAIL = re.compile(r"\[fail:([^\]]*)\]")
_SLOW = re.compile(r"\[slow:(\d{1,4}(?:\.\d{1,3})?)\]")


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came: header names in lower case, the body parsed (None if not JSON)."""

    path: str
    headers: Mapping[str, str]
    body: object


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(
        default_factory=lambda: {"Content-Type": "application/json; charset=UTF-8"}
    )


Script = Callable[[Received], Answer | None]


class GeminiStandIn(Runs):
    """The server. It listens from ``start`` (or ``with``) until ``stop``, which takes no time.

    ``latency_s`` is waited before each answer. With ``fixed_picture`` one picture per ratio is
    painted and then sent again and again, so that the stand-in's own work stays out of a benchmark.
    """

    def __init__(
        self, *, port: int = 0, latency_s: float = 0.0, fixed_picture: bool = False
    ) -> None:
        self.latency_s = latency_s
        self._painter = _Painter(fixed_picture=fixed_picture)
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._script: Script | None = None
        self._google = _Server(port, self._respond)
        self._elsewhere = _Server(0, _answer_elsewhere)

    @property
    def url(self) -> str:
        """What ``GOOGLE_GEMINI_BASE_URL`` is to be set to."""
        return self._google.url

    @property
    def requests(self) -> list[Received]:
        """The last requests, oldest first."""
        return list(self._google.received)

    @property
    def requests_elsewhere(self) -> list[Received]:
        """What arrived at the other host, which ``[fail:redirect]`` points to."""
        return list(self._elsewhere.received)

    @property
    def open_connections(self) -> int:
        """How many connections clients hold open now."""
        return self._google.open_connections

    @property
    def connections_made(self) -> int:
        """How many connections were opened since the start."""
        return self._google.connections_made

    def answer_with(self, script: Script | None) -> None:
        """Asks ``script`` for the answer to each request first; where it says None, all is as ever.

        It is called in the thread of the request.
        """
        self._script = script

    def close_idle_connections(self) -> None:
        """Hangs up on every client, as a server does after a while without requests."""
        self._google.hang_up()

    def start(self) -> None:
        """Begins to answer."""
        self._google.start()
        self._elsewhere.start()

    def stop(self) -> None:
        """Closes every connection, those that hang included, and the ports."""
        self._google.stop()
        self._elsewhere.stop()

    def _respond(self, request: Received, client: "_Client") -> Answer | None:
        scripted = self._script(request) if self._script else None
        if scripted is not None:
            return scripted
        refusal = _refusal_of(request)
        if refusal is not None:
            return refusal
        prompt, ratio = _asked_for(request)
        slow = _SLOW.search(prompt)
        client.wait(self.latency_s + (float(slow[1]) if slow else 0.0))
        task = _Task(prompt, ratio, client, self._painter, self._elsewhere.url, self._first_time)
        fail = _FAIL.search(prompt)
        if fail is None:
            return _picture(task)
        behaviour = _BEHAVIOURS.get(fail[1].strip())
        if behaviour is None:
            names = ", ".join(sorted(FAILURES))
            return _error(400, "INVALID_ARGUMENT", f"There is no such failure. Use one of: {names}")
        return behaviour[1](task)

    def _first_time(self, prompt: str) -> bool:
        with self._lock:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            first = prompt not in self._seen
            self._seen.add(prompt)
            return first


# Requests that Google refuses.


def _refusal_of(request: Received) -> Answer | None:
    path = _PATH.fullmatch(request.path.partition("?")[0])
    if path is None:
        html = {"Content-Type": "text/html; charset=UTF-8"}
        return Answer(404, b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>", html)
    if not request.headers.get("x-goog-api-key"):
        callers = "Method doesn't allow unregistered callers. Please use API Key."
        return _error(403, "PERMISSION_DENIED", callers)
    if not path[1].startswith("gemini-"):
        return _unknown_model(path[1])
    timeout = request.headers.get("x-server-timeout", "")
    if timeout.isdigit() and int(timeout) < _MIN_SERVER_TIMEOUT_S:
        least = f"Minimum allowed deadline is {_MIN_SERVER_TIMEOUT_S}s."
        return _invalid(f"Manually set deadline {timeout}s is too short. {least}")
    return _refusal_of_body(request.body, path[1])


def _refusal_of_body(body: object, model: str) -> Answer | None:
    if not isinstance(body, dict):
        return _invalid("Invalid JSON payload received.")
    if not _text_of(body):
        return _invalid("* GenerateContentRequest.contents: contents is not specified")
    config = body.get("generationConfig", {})
    unwelcome = {"temperature", "topP", "topK", "seed", "candidateCount"} & config.keys()
    old = model.startswith("gemini-2.0-")
    if old and "imageConfig" in config:
        unwelcome.add("imageConfig")
    if unwelcome:
        return _invalid(f"{min(unwelcome)} is not supported for this model.")
    if config.get("responseModalities") != (["TEXT", "IMAGE"] if old else ["IMAGE"]):
        return _invalid("The requested combination of response modalities is not supported.")
    if config.get("imageConfig", {}).get("aspectRatio", UNASKED_RATIO) not in SIZES:
        return _invalid(f"aspect_ratio must be one of {', '.join(SIZES)}.")
    return None


def _asked_for(request: Received) -> tuple[str, str]:
    body = request.body
    if not isinstance(body, dict):
        return "", UNASKED_RATIO
    image_config = body.get("generationConfig", {}).get("imageConfig", {})
    return _text_of(body), image_config.get("aspectRatio", UNASKED_RATIO)


def _text_of(body: dict[str, object]) -> str:
    contents = body.get("contents")
    if not isinstance(contents, list):
        return ""
    parts = [part for content in contents for part in content.get("parts", [])]
    return "\n".join(part.get("text", "") for part in parts)


def _answer_elsewhere(_request: Received, _client: "_Client") -> Answer:
    return Answer(200, b"{}")


# What is answered. A behaviour makes an answer, or uses the connection up itself and makes none.


@dataclass(frozen=True, slots=True)
class _Task:
    prompt: str
    ratio: str
    client: "_Client"
    painter: "_Painter"
    elsewhere_url: str
    first_time: Callable[[str], bool]

    def jpeg(self) -> bytes:
        return self.painter.jpeg(self.prompt, self.ratio)


Behaviour = Callable[[_Task], Answer | None]
Part = dict[str, object]
_USAGE = {"promptTokenCount": 16, "candidatesTokenCount": 1120, "totalTokenCount": 1136}
_SIGNATURE = base64.b64encode(b"a signature that only Google reads").decode()


def _json(document: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(document).encode())


def _error(code: int, status: str, message: str, *details: dict[str, str]) -> Answer:
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return _json({"error": error}, code)


def _invalid(message: str) -> Answer:
    return _error(400, "INVALID_ARGUMENT", message)


def _unknown_model(model: str) -> Answer:
    sentence = f"models/{model} is not found for API version v1beta, or is not supported for "
    return _error(404, "NOT_FOUND", sentence + "generateContent.")


def _candidate(parts: list[Part], finish_reason: object = "STOP") -> Answer:
    content: dict[str, object] = {"parts": parts, "role": "model"} if parts else {}
    return _json(
        {
            "candidates": [{"content": content, "finishReason": finish_reason, "index": 0}],
            "usageMetadata": _USAGE,
            "modelVersion": "gemini-stand-in",
            "responseId": "c3RhbmQtaW4",
        }
    )


def _inline(data: bytes, mime_type: str = "image/jpeg") -> Part:
    return {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(data).decode()}}


def _thought(data: bytes) -> Part:
    return {"thought": True} | _inline(data)


def _signed(part: Part) -> Part:
    return part | {"thoughtSignature": _SIGNATURE}


def _picture(task: _Task) -> Answer:
    return _candidate([_signed(_inline(task.jpeg()))])


def _encoded(image_format: Literal["PNG", "WEBP"], mime_type: str) -> Behaviour:
    def behave(task: _Task) -> Answer:
        buffer = io.BytesIO()
        # Quick rather than small.
        options = {"compress_level": 1} if image_format == "PNG" else {"quality": 80, "method": 0}
        paint(task.prompt, task.ratio).save(buffer, image_format, **options)
        return _candidate([_signed(_inline(buffer.getvalue(), mime_type))])

    return behave


def _finish(reason: object) -> tuple[str, Behaviour]:
    return f"finishReason {reason} and no picture", _whole(_candidate([], reason))


def _finish_with_image(reason: str) -> tuple[str, Behaviour]:
    def behave(task: _Task) -> Answer:
        return _candidate([_signed(_inline(task.jpeg()))], reason)

    return f"finishReason {reason} and a picture all the same", behave


def _bytes(data: bytes) -> Behaviour:
    return lambda _: _candidate([_signed(_inline(data))])


def _whole(answer: Answer) -> Behaviour:
    return lambda _: answer


def _bad_base64(task: _Task) -> Answer:
    whole = _picture(task)
    return Answer(200, whole.body.replace(b'"data": "', b'"data": "*#*', 1), whole.headers)


def _cut_base64(task: _Task) -> Answer:
    data = base64.b64encode(task.jpeg()).decode()
    cut = data[: len(data) // 8 * 4]
    return _candidate([{"inlineData": {"mimeType": "image/jpeg", "data": cut}}])


def _cut_image(task: _Task) -> Answer:
    jpeg = task.jpeg()
    return _candidate([_signed(_inline(jpeg[: len(jpeg) * 2 // 3]))])


def _wrong_shape(task: _Task) -> Answer:
    other = "16:9" if task.ratio in {"1:1", "9:16", "2:3", "3:4", "4:5"} else "9:16"
    return _candidate([_signed(_inline(task.painter.jpeg(task.prompt, other)))])


def _thought_only(task: _Task) -> Answer:
    return _candidate([_thought(task.jpeg())])


def _thought_first(task: _Task) -> Answer:
    draft = task.painter.jpeg("a draft of: " + task.prompt, task.ratio)
    return _candidate([_thought(draft), _signed(_inline(task.jpeg()))])


def _bomb_png() -> bytes:
    """A PNG of a few hundred bytes that says it is 50,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000), 9)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _quota(*delays: str) -> Behaviour:
    kind = "type.googleapis.com/google.rpc.RetryInfo"
    details = [{"@type": kind, "retryDelay": delay} for delay in delays]
    sentence = "You exceeded your current quota, please check your plan and billing details."
    return _whole(_error(429, "RESOURCE_EXHAUSTED", sentence, *details))


def _once(answer: Behaviour) -> Behaviour:
    return lambda task: answer(task) if task.first_time(task.prompt) else _picture(task)


def _slow(task: _Task) -> Answer:
    task.client.wait(5)
    return _picture(task)


def _reset(task: _Task) -> None:
    task.client.reset()


def _hang(task: _Task) -> None:
    task.client.wait(LONGEST_S)


def _hang_after_headers(task: _Task) -> None:
    task.client.send_head(_picture(task))
    task.client.wait(LONGEST_S)


def _drip(task: _Task) -> None:
    answer = _picture(task)
    task.client.send_head(answer)
    task.client.drip(answer.body)


def _drip_headers(task: _Task) -> None:
    task.client.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4096)


def _endless(task: _Task) -> None:
    task.client.send_chunks(b" " * 65536, _ENDLESS_BYTES)


def _redirect(task: _Task) -> Answer:
    return Answer(302, b"", {"Location": task.elsewhere_url + "/v1beta/models/x:generateContent"})


_SORRY = "I cannot fulfill this request."
_OVERLOADED = _whole(
    _error(503, "UNAVAILABLE", "This model is currently experiencing high demand.")
)
_NO_BILLING = _error(400, "FAILED_PRECONDITION", "User location is not supported.")
_BAD_KEY = _error(
    400,
    "INVALID_ARGUMENT",
    "API key not valid. Please pass a valid API key.",
    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
)
_BLOCKED = {
    "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
    "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
}
_BAD_GATEWAY = Answer(
    502, b"<html>Mauvaise passerelle: \xe9chec</html>", {"Content-Type": "text/html"}
)

_BEHAVIOURS: Mapping[str, tuple[str, Behaviour]] = {
    # Refused for what was asked or drawn.
    "blocked-prompt": ("a blockReason and no candidates", _whole(_json(_BLOCKED))),
    "safety": _finish("SAFETY"),
    "recitation": _finish("RECITATION"),
    "blocklist": _finish("BLOCKLIST"),
    "prohibited-content": _finish("PROHIBITED_CONTENT"),
    "spii": _finish("SPII"),
    "image-safety": _finish("IMAGE_SAFETY"),
    "image-prohibited": _finish("IMAGE_PROHIBITED_CONTENT"),
    "image-recitation": _finish("IMAGE_RECITATION"),
    "safety-with-image": _finish_with_image("IMAGE_SAFETY"),
    # Answered, but with no picture.
    "text-only": ("a sentence instead of a picture", _whole(_candidate([{"text": _SORRY}]))),
    "no-image": _finish("NO_IMAGE"),
    "image-other": _finish("IMAGE_OTHER"),
    "other": _finish("OTHER"),
    "max-tokens": _finish("MAX_TOKENS"),
    "unknown-finish": _finish("THE_MUSE_LEFT"),
    "numeric-finish": _finish(3),
    "thought-only": ("a draft marked as a thought, and nothing after it", _thought_only),
    "empty-body": ("200 with an empty body", _whole(Answer(200, b""))),
    "empty-object": ("200 with {}", _whole(Answer(200, b"{}"))),
    "empty-array": ("200 with []", _whole(Answer(200, b"[]"))),
    "not-json": ("200 with a page of HTML", _whole(Answer(200, b"<html>Welcome</html>"))),
    "bad-base64": ("a picture whose base64 has foreign characters", _bad_base64),
    "endless": ("200 with a body that does not end", _endless),
    # Answered with a picture, or with what claims to be one.
    "thought-first": ("success: a draft marked as a thought, then the picture", _thought_first),
    "other-with-image": _finish_with_image("OTHER"),
    "png": ("success: the picture as PNG", _encoded("PNG", "image/png")),
    "webp": ("success: the picture as WebP", _encoded("WEBP", "image/webp")),
    "wrong-mime": ("success: WebP that says it is PNG", _encoded("WEBP", "image/png")),
    "cut-base64": ("a picture whose base64 ends half way", _cut_base64),
    "cut-image": ("a JPEG whose last third is missing", _cut_image),
    "not-an-image": ("bytes that are no picture", _bytes(b"This is not a picture. " * 40)),
    "wrong-shape": ("a picture of another ratio", _wrong_shape),
    "bomb": ("a small PNG that claims 50,000 x 50,000 pixels", _bytes(_bomb_png())),
    # Refused for who asks, or how.
    "bad-key": ("400 API_KEY_INVALID", _whole(_BAD_KEY)),
    "unauthorized": ("401", _whole(_error(401, "UNAUTHENTICATED", "Invalid credentials."))),
    "forbidden": ("403", _whole(_error(403, "PERMISSION_DENIED", "The caller may not."))),
    "not-found": ("404: the model was retired", _whole(_unknown_model("gemini-retired"))),
    "no-billing": ("400 FAILED_PRECONDITION: no service in this region", _whole(_NO_BILLING)),
    "bad-request": ("400 INVALID_ARGUMENT", _whole(_invalid("Unable to process the prompt."))),
    "redirect": ("302 to another host", _redirect),
    # Not now.
    "quota": ("429 with a RetryInfo of 34 s", _quota("34s")),
    "quota-short": ("429 with a RetryInfo of 1 s", _quota("1s")),
    "quota-bare": ("429 without RetryInfo", _quota()),
    "internal": ("500", _whole(_error(500, "INTERNAL", "An internal error has occurred."))),
    "bad-gateway": ("502 with a page that is not UTF-8", _whole(_BAD_GATEWAY)),
    "overloaded": ("503", _OVERLOADED),
    "overloaded-once": ("503 the first time for this prompt, then success", _once(_OVERLOADED)),
    "deadline": ("504", _whole(_error(504, "DEADLINE_EXCEEDED", "Deadline expired."))),
    # The connection.
    "slow": ("success after 5 s; [slow:2.5] anywhere chooses the seconds", _slow),
    "reset": ("the connection is reset", _reset),
    "reset-once": ("a reset the first time for this prompt, then success", _once(_reset)),
    "hang": ("no answer, for up to a minute", _hang),
    "hang-after-headers": ("the header of an answer, and no body", _hang_after_headers),
    "drip": ("a real answer, one byte every 0.2 s, for up to a minute", _drip),
    "drip-headers": ("a header, one byte every 0.2 s, for up to a minute", _drip_headers),
}

FAILURES: Mapping[str, str] = {name: line for name, (line, _) in _BEHAVIOURS.items()}


class _Painter:
    """Pictures as JPEG; with ``fixed_picture`` the first of a ratio serves for all later ones."""

    def __init__(self, *, fixed_picture: bool) -> None:
        self._fixed_picture = fixed_picture
        self._lock = threading.Lock()
        self._painted: dict[str, bytes] = {}
        # More painters than cores would only keep the rest of the process from running.
        self._brushes = threading.Semaphore(os.cpu_count() or 1)

    def jpeg(self, prompt: str, ratio: str) -> bytes:
        if not self._fixed_picture:
            with self._brushes:
                return _as_jpeg(paint(prompt, ratio))
        with self._lock:
            if ratio not in self._painted:
                self._painted[ratio] = _as_jpeg(paint("A picture for benchmarks", ratio))
            return self._painted[ratio]


def _as_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# The server.


class _ClientGoneError(Exception):
    """The client hung up, or the server is being stopped."""


class _Server(socketserver.ThreadingTCPServer):
    """HTTP/1.1 on 127.0.0.1, one thread a connection; it knows its connections and can end them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, port: int, respond: Callable[[Received, "_Client"], Answer | None]) -> None:
        super().__init__(("127.0.0.1", port), _Client)
        self.respond = respond
        self.received: deque[Received] = deque(maxlen=REMEMBERED)
        self.stopping = threading.Event()
        self.connections_made = 0
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def open_connections(self) -> int:
        with self._changed:
            return len(self._connections)

    def start(self) -> None:
        self._thread.start()

    def hang_up(self) -> None:
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, timeout=2)

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()
        self.hang_up()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
            self.connections_made += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is nothing to report; the rest is a fault here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Client(BaseHTTPRequestHandler):
    """One connection: reads its requests, asks the server for answers, sends them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 2 * LONGEST_S
    server: _Server

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            self._send(_invalid("Request payload size exceeds the limit."))
            return
        request = _received(self.path, dict(self.headers.items()), self.rfile.read(int(length)))
        self.server.received.append(request)
        try:
            answer = self.server.respond(request, self)
        except _ClientGoneError:
            answer = None
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer)

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST  # noqa: N815 - http.server's names

    def wait(self, seconds: float) -> None:
        """Waits, at most ``LONGEST_S``.

        Raises:
            _ClientGoneError: nobody waits for the answer any more.
        """
        ends_at = time.monotonic() + min(seconds, LONGEST_S)
        while (left_s := ends_at - time.monotonic()) > 0:
            if self.server.stopping.wait(min(left_s, _POLL_S)) or self._has_hung_up():
                raise _ClientGoneError

    def reset(self) -> None:
        """Ends the connection with RST: closed with nothing to linger for, and no FIN before."""
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        os.close(self.connection.detach())

    def send_head(self, answer: Answer) -> None:
        """Sends the status line and the header, as if the body were to follow."""
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def drip(self, data: bytes) -> None:
        """Sends a byte every ``_DRIP_S``, for at most ``LONGEST_S``."""
        for byte in data[: round(LONGEST_S / _DRIP_S)]:
            self.wfile.write(bytes([byte]))
            self.wait(_DRIP_S)

    def send_chunks(self, chunk: bytes, total: int) -> None:
        """Sends a 200 with ``chunk`` over and over, until ``total`` bytes or the client is gone."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(total // len(chunk)):
            if self.server.stopping.is_set():
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Says nothing: prompts stay out of the terminal."""

    def _send(self, answer: Answer) -> None:
        self.send_head(answer)
        self.wfile.write(answer.body)

    def _has_hung_up(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True


def _received(path: str, headers: Mapping[str, str], body: bytes) -> Received:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return Received(path, {name.lower(): value for name, value in headers.items()}, document)


# The command.


def main(arguments: list[str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM, or the end of the standard input if so asked."""
    names = "\n".join(f"  [fail:{name}]".ljust(28) + line for name, line in FAILURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m infra.local.gemini_stand_in",
        description="A Gemini stand-in on 127.0.0.1. Its URL is the first line that it prints.",
        epilog=f"Words in a prompt that make it misbehave:\n  [slow:2.5]\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument(
        "--fixed-picture", action="store_true", help="paint one picture per ratio, for benchmarks"
    )
    parser.add_argument(
        "--stop-with-stdin", action="store_true", help="end when the standard input does"
    )
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if options.stop_with_stdin:
        threading.Thread(target=_at_end_of_input, args=(ended.set,), daemon=True).start()
    stand_in = GeminiStandIn(
        port=options.port, latency_s=options.latency, fixed_picture=options.fixed_picture
    )
    with stand_in:
        print(stand_in.url, flush=True)
        ended.wait()


def _at_end_of_input(act: Callable[[], None]) -> None:
    # Below Python's buffers: a thread that waits in those spoils the end of the interpreter.
    while os.read(0, 4096):
        pass
    act()


if __name__ == "__main__":
    main()
