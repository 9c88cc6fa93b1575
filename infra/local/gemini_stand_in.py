"""A Gemini that runs on this machine: the real wire protocol, and a picture worth looking at.

    python -m infra.local.gemini_stand_in --port 8100 --latency 1.5

It answers ``POST /v1beta/models/{model}:generateContent`` on 127.0.0.1 as Google does, refusals
included, and paints a landscape that depends on the prompt, with the prompt written in it. A
directive anywhere in the prompt makes it misbehave: ``[fail:NAME]`` with a name of ``FAILURES``, or
``[slow:2.5]`` for 2.5 seconds before the response. ``GET /v1beta/models/{model}`` names the model.

It imitates generativelanguage.googleapis.com, v1beta.
"""

import argparse
import base64
import io
import json
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from infra.lifetime import Runs
from infra.local.gemini_server import (
    LONGEST_S,
    ModelConnection,
    ModelRequest,
    ModelResponse,
    ModelServer,
)
from infra.local.landscape import SIZES, paint

__all__ = [
    "FAILURES",
    "SIZES",
    "GeminiStandIn",
    "ModelRequest",
    "ModelResponse",
]

UNASKED_RATIO = "4:3"

_ENDLESS_BYTES = 1024 * 1024 * 1024
_MIN_SERVER_TIMEOUT_S = 10
_REMEMBERED_PROMPTS = 1_000

_PATH = re.compile(r"/v1beta/models/([^/:]+)(:generateContent)?")
_FAIL = re.compile(r"\[fail:([^\]]*)\]")
_SLOW = re.compile(r"\[slow:(\d{1,4}(?:\.\d{1,3})?)\]")
Script = Callable[[ModelRequest], ModelResponse | None]


class GeminiStandIn(Runs):
    """The stand-in. It responds from ``start`` (or ``with``) until ``stop``, which takes no time.

    It waits ``latency_s`` before each response. With ``fixed_picture`` it paints one picture per
    ratio and sends it again and again, which keeps its own work out of a benchmark.
    """

    def __init__(
        self, *, port: int = 0, latency_s: float = 0.0, fixed_picture: bool = False
    ) -> None:
        self.latency_s = latency_s
        self._painter = _Painter(fixed_picture=fixed_picture)
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._script: Script | None = None
        self._google = ModelServer(port, self._respond)
        self._elsewhere = ModelServer(0, _respond_elsewhere)

    @property
    def url(self) -> str:
        """The value for ``GOOGLE_GEMINI_BASE_URL``."""
        return self._google.url

    @property
    def requests(self) -> list[ModelRequest]:
        """The last requests, oldest first."""
        return list(self._google.received)

    @property
    def requests_elsewhere(self) -> list[ModelRequest]:
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
        """Asks ``script`` first for the response to each request; None leaves it to the stand-in.

        ``script`` runs on the thread of the request.
        """
        self._script = script

    def close_idle_connections(self) -> None:
        """Closes every connection, as a server does after a while without requests."""
        self._google.hang_up()

    def start(self) -> None:
        """Responds from now on."""
        self._google.start()
        self._elsewhere.start()

    def stop(self) -> None:
        """Closes the ports and every connection, including those that hang."""
        self._google.stop()
        self._elsewhere.stop()

    def _respond(self, request: ModelRequest, client: ModelConnection) -> ModelResponse | None:
        scripted = self._script(request) if self._script else None
        if scripted is not None:
            return scripted
        refusal = _refusal_of(request)
        if refusal is not None:
            return refusal
        if not request.path.endswith(":generateContent"):
            return _json({"name": request.path.removeprefix("/v1beta/")})
        prompt, ratio = _asked_for(request)
        slow = _SLOW.search(prompt)
        client.wait(self.latency_s + (float(slow[1]) if slow else 0.0))
        exchange = _Exchange(
            prompt, ratio, client, self._painter, self._elsewhere.url, self._is_first
        )
        fail = _FAIL.search(prompt)
        if fail is None:
            return _picture(exchange)
        behaviour = _BEHAVIOURS.get(fail[1].strip())
        if behaviour is None:
            names = ", ".join(sorted(FAILURES))
            return _error(400, "INVALID_ARGUMENT", f"No such failure. Use one of: {names}")
        return behaviour[1](exchange)

    def _is_first(self, prompt: str) -> bool:
        with self._lock:
            if len(self._seen) >= _REMEMBERED_PROMPTS:
                self._seen.clear()
            first = prompt not in self._seen
            self._seen.add(prompt)
            return first


# Requests that Google refuses.


def _refusal_of(request: ModelRequest) -> ModelResponse | None:
    path = _PATH.fullmatch(request.path.partition("?")[0])
    if path is None:
        html = {"Content-Type": "text/html; charset=UTF-8"}
        return ModelResponse(404, b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>", html)
    if not request.headers.get("x-goog-api-key"):
        callers = "Method doesn't allow unregistered callers. Please use API Key."
        return _error(403, "PERMISSION_DENIED", callers)
    if not path[1].startswith("gemini-"):
        return _unknown_model(path[1])
    if path[2] is None:
        return None
    timeout = request.headers.get("x-server-timeout", "")
    if timeout.isdigit() and int(timeout) < _MIN_SERVER_TIMEOUT_S:
        least = f"Minimum allowed deadline is {_MIN_SERVER_TIMEOUT_S}s."
        return _invalid(f"Manually set deadline {timeout}s is too short. {least}")
    return _refusal_of_body(request.body, path[1])


def _refusal_of_body(body: object, model: str) -> ModelResponse | None:
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


def _asked_for(request: ModelRequest) -> tuple[str, str]:
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


def _respond_elsewhere(_request: ModelRequest, _client: ModelConnection) -> ModelResponse:
    return ModelResponse(200, b"{}")


# The responses. A behaviour returns one, or uses the connection itself and returns None.


@dataclass(frozen=True, slots=True)
class _Exchange:
    prompt: str
    ratio: str
    client: ModelConnection
    painter: "_Painter"
    elsewhere_url: str
    is_first: Callable[[str], bool]

    def jpeg(self) -> bytes:
        return self.painter.jpeg(self.prompt, self.ratio)


Behaviour = Callable[[_Exchange], ModelResponse | None]
Part = dict[str, object]
_USAGE = {"promptTokenCount": 16, "candidatesTokenCount": 1120, "totalTokenCount": 1136}
_SIGNATURE = base64.b64encode(b"a signature that only Google reads").decode()


def _json(document: object, status: int = 200) -> ModelResponse:
    return ModelResponse(status, json.dumps(document).encode())


def _error(code: int, status: str, message: str, *details: dict[str, str]) -> ModelResponse:
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return _json({"error": error}, code)


def _invalid(message: str) -> ModelResponse:
    return _error(400, "INVALID_ARGUMENT", message)


def _unknown_model(model: str) -> ModelResponse:
    sentence = f"models/{model} is not found for API version v1beta, or is not supported for "
    return _error(404, "NOT_FOUND", sentence + "generateContent.")


def _candidate(parts: list[Part], finish_reason: object = "STOP") -> ModelResponse:
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


def _picture(exchange: _Exchange) -> ModelResponse:
    return _candidate([_signed(_inline(exchange.jpeg()))])


def _encoded(image_format: Literal["PNG", "WEBP"], mime_type: str) -> Behaviour:
    def behave(exchange: _Exchange) -> ModelResponse:
        buffer = io.BytesIO()
        # Fast rather than small.
        options = {"compress_level": 1} if image_format == "PNG" else {"quality": 80, "method": 0}
        paint(exchange.prompt, exchange.ratio).save(buffer, image_format, **options)
        return _candidate([_signed(_inline(buffer.getvalue(), mime_type))])

    return behave


def _finish(reason: object) -> tuple[str, Behaviour]:
    return f"finishReason {reason} without a picture", _whole(_candidate([], reason))


def _finish_with_image(reason: str) -> tuple[str, Behaviour]:
    def behave(exchange: _Exchange) -> ModelResponse:
        return _candidate([_signed(_inline(exchange.jpeg()))], reason)

    return f"finishReason {reason} with a picture", behave


def _bytes(data: bytes) -> Behaviour:
    return lambda _: _candidate([_signed(_inline(data))])


def _whole(response: ModelResponse) -> Behaviour:
    return lambda _: response


def _bad_base64(exchange: _Exchange) -> ModelResponse:
    whole = _picture(exchange)
    return ModelResponse(200, whole.body.replace(b'"data": "', b'"data": "*#*', 1), whole.headers)


def _cut_base64(exchange: _Exchange) -> ModelResponse:
    data = base64.b64encode(exchange.jpeg()).decode()
    cut = data[: len(data) // 8 * 4]
    return _candidate([{"inlineData": {"mimeType": "image/jpeg", "data": cut}}])


def _cut_image(exchange: _Exchange) -> ModelResponse:
    jpeg = exchange.jpeg()
    return _candidate([_signed(_inline(jpeg[: len(jpeg) * 2 // 3]))])


def _wrong_shape(exchange: _Exchange) -> ModelResponse:
    other = "16:9" if exchange.ratio in {"1:1", "9:16", "2:3", "3:4", "4:5"} else "9:16"
    return _candidate([_signed(_inline(exchange.painter.jpeg(exchange.prompt, other)))])


def _thought_only(exchange: _Exchange) -> ModelResponse:
    return _candidate([_thought(exchange.jpeg())])


def _thought_first(exchange: _Exchange) -> ModelResponse:
    draft = exchange.painter.jpeg("a draft of: " + exchange.prompt, exchange.ratio)
    return _candidate([_thought(draft), _signed(_inline(exchange.jpeg()))])


def _bomb_png() -> bytes:
    """A PNG of a few hundred bytes whose header claims 50,000 x 50,000 pixels."""

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


def _once(failure: Behaviour) -> Behaviour:
    def behave(exchange: _Exchange) -> ModelResponse | None:
        return (failure if exchange.is_first(exchange.prompt) else _picture)(exchange)

    return behave


def _slow(exchange: _Exchange) -> ModelResponse:
    exchange.client.wait(5)
    return _picture(exchange)


def _reset(exchange: _Exchange) -> None:
    exchange.client.reset()


def _hang(exchange: _Exchange) -> None:
    exchange.client.wait(LONGEST_S)


def _hang_after_headers(exchange: _Exchange) -> None:
    exchange.client.send_head(_picture(exchange))
    exchange.client.wait(LONGEST_S)


def _drip(exchange: _Exchange) -> None:
    response = _picture(exchange)
    exchange.client.send_head(response)
    exchange.client.drip(response.body)


def _drip_headers(exchange: _Exchange) -> None:
    exchange.client.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4096)


def _endless(exchange: _Exchange) -> None:
    exchange.client.send_chunks(b" " * 65536, _ENDLESS_BYTES)


def _redirect(exchange: _Exchange) -> ModelResponse:
    location = exchange.elsewhere_url + "/v1beta/models/x:generateContent"
    return ModelResponse(302, b"", {"Location": location})


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
_BAD_GATEWAY = ModelResponse(
    502, b"<html>Mauvaise passerelle: \xe9chec</html>", {"Content-Type": "text/html"}
)

# Refusals in the words of public reports.
_EXHAUSTED = "RESOURCE_EXHAUSTED"
_SENTENCES: Mapping[str, tuple[int, str, str]] = {
    "cancelled": (499, "CANCELLED", "The operation was cancelled."),
    "aborted": (409, "ABORTED", "The operation was aborted."),
    "too-early": (425, "", "Too early."),
    "unbilled": (400, "INVALID_ARGUMENT", "This is only accessible to billed users at this time."),
    "payment-required": (402, "", ""),
    "quota-zero": (429, _EXHAUSTED, "Quota exceeded, limit: 0, model: x\nPlease retry in 1.5s."),
    "quota-sentence": (429, _EXHAUSTED, "You exceeded your current quota. Please retry in 1.2s."),
    "spending-cap": (429, _EXHAUSTED, "Your project has exceeded its monthly spending cap."),
    "spend-rate": (429, _EXHAUSTED, "You exceeded your spend-based rate limit."),
    "prepaid-depleted": (429, _EXHAUSTED, "Your prepayment credits are depleted."),
}
_REFUSALS: Mapping[str, tuple[str, Behaviour]] = {
    name: (f"{code}: {sentence.splitlines()[0] if sentence else 'no sentence'}", _whole(answer))
    for name, (code, status, sentence) in _SENTENCES.items()
    for answer in [_error(code, status, sentence)]
}

_BEHAVIOURS: Mapping[str, tuple[str, Behaviour]] = {
    # Refused because of the prompt or the picture.
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
    # A response without a picture.
    "text-only": ("a sentence instead of a picture", _whole(_candidate([{"text": _SORRY}]))),
    "no-image": _finish("NO_IMAGE"),
    "image-other": _finish("IMAGE_OTHER"),
    "other": _finish("OTHER"),
    "max-tokens": _finish("MAX_TOKENS"),
    "unknown-finish": _finish("THE_MUSE_LEFT"),
    "numeric-finish": _finish(3),
    "thought-only": ("a draft marked as a thought, and nothing else", _thought_only),
    "empty-body": ("200 with an empty body", _whole(ModelResponse(200, b""))),
    "empty-object": ("200 with {}", _whole(ModelResponse(200, b"{}"))),
    "empty-array": ("200 with []", _whole(ModelResponse(200, b"[]"))),
    "not-json": ("200 with a page of HTML", _whole(ModelResponse(200, b"<html>Welcome</html>"))),
    "bad-base64": ("a picture whose base64 has invalid characters", _bad_base64),
    "endless": ("200 with a body that never ends", _endless),
    # A response with a picture, or with something that claims to be one.
    "thought-first": ("success: a draft marked as a thought, then the picture", _thought_first),
    "other-with-image": _finish_with_image("OTHER"),
    "png": ("success: the picture as PNG", _encoded("PNG", "image/png")),
    "webp": ("success: the picture as WebP", _encoded("WEBP", "image/webp")),
    "wrong-mime": ("success: WebP declared as PNG", _encoded("WEBP", "image/png")),
    "cut-base64": ("a picture whose base64 ends halfway", _cut_base64),
    "cut-image": ("a JPEG whose last third is missing", _cut_image),
    "not-an-image": ("bytes that are not a picture", _bytes(b"This is not a picture. " * 40)),
    "wrong-shape": ("a picture of another ratio", _wrong_shape),
    "bomb": ("a small PNG that claims 50,000 x 50,000 pixels", _bytes(_bomb_png())),
    # Refused because of the caller or the request.
    "bad-key": ("400 API_KEY_INVALID", _whole(_BAD_KEY)),
    "unauthorized": ("401", _whole(_error(401, "UNAUTHENTICATED", "Invalid credentials."))),
    "forbidden": ("403", _whole(_error(403, "PERMISSION_DENIED", "The caller may not."))),
    "not-found": ("404: the model was retired", _whole(_unknown_model("gemini-retired"))),
    "no-billing": ("400 FAILED_PRECONDITION: not available in this region", _whole(_NO_BILLING)),
    "bad-request": ("400 INVALID_ARGUMENT", _whole(_invalid("Unable to process the prompt."))),
    "redirect": ("302 to another host", _redirect),
    # Temporary failures.
    "quota": ("429 with a RetryInfo of 34 s", _quota("34s")),
    "quota-short": ("429 with a RetryInfo of 1 s", _quota("1s")),
    "quota-bare": ("429 without RetryInfo", _quota()),
    "internal": ("500", _whole(_error(500, "INTERNAL", "An internal error has occurred."))),
    "bad-gateway": ("502 with a page that is not UTF-8", _whole(_BAD_GATEWAY)),
    "overloaded": ("503", _OVERLOADED),
    "overloaded-once": ("503 the first time for this prompt, then success", _once(_OVERLOADED)),
    "deadline": ("504", _whole(_error(504, "DEADLINE_EXCEEDED", "Deadline expired."))),
    **_REFUSALS,
    # The connection.
    "slow": ("success after 5 s; [slow:2.5] anywhere chooses the seconds", _slow),
    "reset": ("the connection is reset", _reset),
    "reset-once": ("a reset the first time for this prompt, then success", _once(_reset)),
    "hang": ("no response, for up to a minute", _hang),
    "hang-after-headers": ("the headers of a response, and no body", _hang_after_headers),
    "drip": ("a real response, one byte every 0.2 s, for up to a minute", _drip),
    "drip-headers": ("a header, one byte every 0.2 s, for up to a minute", _drip_headers),
}

FAILURES: Mapping[str, str] = {name: line for name, (line, _) in _BEHAVIOURS.items()}


class _Painter:
    """Paints JPEGs; with ``fixed_picture`` it paints only one per ratio."""

    def __init__(self, *, fixed_picture: bool) -> None:
        self._fixed_picture = fixed_picture
        self._lock = threading.Lock()
        self._painted: dict[str, bytes] = {}
        # Painting more pictures at once than there are cores would starve the rest of the process.
        self._one_per_core = threading.Semaphore(os.cpu_count() or 1)

    def jpeg(self, prompt: str, ratio: str) -> bytes:
        if not self._fixed_picture:
            with self._one_per_core:
                return _as_jpeg(paint(prompt, ratio))
        with self._lock:
            if ratio not in self._painted:
                self._painted[ratio] = _as_jpeg(paint("A picture for benchmarks", ratio))
            return self._painted[ratio]


def _as_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# The command.


def main(arguments: list[str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM, or to the end of stdin with ``--stop-with-stdin``."""
    names = "\n".join(f"  [fail:{name}]".ljust(28) + line for name, line in FAILURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m infra.local.gemini_stand_in",
        description="A Gemini stand-in on 127.0.0.1. It prints its URL first.",
        epilog=f"Directives in a prompt that make it misbehave:\n  [slow:2.5]\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free port")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each response")
    parser.add_argument(
        "--fixed-picture", action="store_true", help="paint one picture per ratio, for benchmarks"
    )
    parser.add_argument(
        "--stop-with-stdin", action="store_true", help="stop when the standard input ends"
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
    # Reads below Python's buffers: a thread that waits in one can break the interpreter's exit.
    while os.read(0, 4096):
        pass
    act()


if __name__ == "__main__":
    main()
