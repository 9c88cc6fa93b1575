"""The Gemini stand-in: it speaks as Google does, and fails on demand."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from infra.local.gemini_stand_in import FAILURES, GeminiStandIn, ModelResponse
from infra.local.landscape import SIZES
from lib.picture.aspect_ratio import AspectRatio

MODEL = "gemini-3.1-flash-lite-image"
PATH = f"/v1beta/models/{MODEL}:generateContent"


@pytest.fixture(scope="module")
def shared() -> Iterator[GeminiStandIn]:
    with GeminiStandIn() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def quick() -> Iterator[GeminiStandIn]:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        yield stand_in


def request_of(prompt: str, ratio: str | None = "1:1") -> dict[str, object]:
    config: dict[str, object] = {"responseModalities": ["IMAGE"]}
    if ratio:
        config["imageConfig"] = {"aspectRatio": ratio}
    return {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": config}


def post(
    stand_in: GeminiStandIn, body: object, path: str = PATH, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    sent = {"Content-Type": "application/json", "x-goog-api-key": "k"} | headers
    request = urllib.request.Request(  # noqa: S310 - a URL of this machine
        stand_in.url + path, json.dumps(body).encode(), sent, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, dict(refusal.headers), refusal.read()


def parts_of(answer: bytes) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = json.loads(answer)["candidates"][0]["content"]["parts"]
    return parts


def picture_of(answer: bytes) -> Image.Image:
    data = base64.b64decode(parts_of(answer)[-1]["inlineData"]["data"], validate=True)
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("ratio", list(AspectRatio))
def test_each_ratio_gives_a_jpeg_of_its_shape(shared: GeminiStandIn, ratio: AspectRatio) -> None:
    status, headers, body = post(shared, request_of("A red fox", ratio))

    picture = picture_of(body)
    assert status == 200
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert (picture.format, picture.size) == ("JPEG", SIZES[ratio])
    assert picture.width / picture.height == pytest.approx(ratio.width_over_height, rel=0.06)


def test_the_default_ratio_is_the_stand_ins_own(shared: GeminiStandIn) -> None:
    assert picture_of(post(shared, request_of("A red fox", None))[2]).size == SIZES["4:3"]


def test_a_picture_depends_on_its_prompt_alone(shared: GeminiStandIn) -> None:
    prompts = ("A red fox", "A red fox", "A white owl")
    fox, again, owl = (picture_of(post(shared, request_of(each))[2]).tobytes() for each in prompts)

    assert fox == again
    assert fox != owl


@pytest.mark.parametrize("prompt", ["東京の夜 🌃", "é" * 4000, "word " * 800, "\x00\t\n"])
def test_a_prompt_that_can_not_be_drawn_gives_a_picture_too(
    shared: GeminiStandIn, prompt: str
) -> None:
    assert picture_of(post(shared, request_of(prompt))[2]).size == (1024, 1024)


def test_a_response_has_the_fields_of_googles_and_the_request_is_remembered(
    shared: GeminiStandIn,
) -> None:
    sent = request_of("A red fox")
    response = json.loads(post(shared, sent, **{"X-Server-Timeout": "22"})[2])

    candidate = response["candidates"][0]
    assert (candidate["finishReason"], candidate["index"]) == ("STOP", 0)
    assert candidate["content"]["role"] == "model"
    assert candidate["content"]["parts"][0]["thoughtSignature"]
    assert response["usageMetadata"]["totalTokenCount"] == 1136
    received = shared.requests[-1]
    assert (received.path, received.body) == (PATH, sent)
    assert received.headers["x-server-timeout"] == "22"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        (PATH.replace("v1beta", "v1"), 404),
        (PATH.replace("generateContent", "countTokens"), 404),
        (PATH.replace("gemini-", "imagen-"), 404),
        (PATH + "?alt=json", 200),
    ],
)
def test_only_the_path_of_a_gemini_model_exists(
    shared: GeminiStandIn, path: str, status: int
) -> None:
    assert post(shared, request_of("A red fox"), path)[0] == status


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (request_of("x"), {"x-goog-api-key": ""}, 403, "unregistered callers"),
        (request_of("x"), {"X-Server-Timeout": "9"}, 400, "Minimum allowed deadline is 10s"),
        (request_of("x", "7:3"), {}, 400, "aspect_ratio must be one of 1:1"),
        (request_of(""), {}, 400, "contents is not specified"),
        ([], {}, 400, "Invalid JSON payload"),
        (request_of("x") | {"generationConfig": {}}, {}, 400, "response modalities"),
        (request_of("x") | {"generationConfig": {"seed": 1}}, {}, 400, "seed is not supported"),
    ],
)
def test_what_google_refuses_is_refused(
    shared: GeminiStandIn, body: object, headers: dict[str, str], status: int, words: str
) -> None:
    answered, _, answer = post(shared, body, **headers)

    assert answered == status
    assert words in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("bad-key", 400, "API_KEY_INVALID"),
        ("bad-request", 400, "INVALID_ARGUMENT"),
        ("unauthorized", 401, "UNAUTHENTICATED"),
        ("forbidden", 403, "PERMISSION_DENIED"),
        ("not-found", 404, "NOT_FOUND"),
        ("quota", 429, '"retryDelay": "34s"'),
        ("internal", 500, "INTERNAL"),
        ("overloaded", 503, "UNAVAILABLE"),
        ("deadline", 504, "DEADLINE_EXCEEDED"),
        ("blocked-prompt", 200, '"blockReason": "PROHIBITED_CONTENT"'),
        ("image-safety", 200, '"finishReason": "IMAGE_SAFETY"'),
        ("text-only", 200, "I cannot fulfill this request."),
        ("nonsense", 400, ", ".join(sorted(FAILURES))),
    ],
)
def test_a_directive_makes_it_fail_and_an_unknown_one_lists_all(
    shared: GeminiStandIn, name: str, status: int, words: str
) -> None:
    answered, _, body = post(shared, request_of(f"A fox [fail:{name}] in the snow"))

    assert answered == status
    assert words in body.decode()


@pytest.mark.parametrize(
    ("name", "image_format", "declared"),
    [
        ("png", "PNG", "image/png"),
        ("webp", "WEBP", "image/webp"),
        ("wrong-mime", "WEBP", "image/png"),
    ],
)
def test_pictures_come_in_other_formats_on_demand(
    shared: GeminiStandIn, name: str, image_format: str, declared: str
) -> None:
    _, _, body = post(shared, request_of(f"[fail:{name}]", "16:9"))

    assert (picture_of(body).format, picture_of(body).size) == (image_format, SIZES["16:9"])
    assert parts_of(body)[0]["inlineData"]["mimeType"] == declared


def test_a_thought_comes_before_the_picture_and_differs_from_it(shared: GeminiStandIn) -> None:
    draft, final = parts_of(post(shared, request_of("[fail:thought-first]"))[2])

    assert draft["thought"] is True
    assert "thought" not in final
    assert draft["inlineData"]["data"] != final["inlineData"]["data"]


@pytest.mark.parametrize("ratio", list(AspectRatio))
def test_the_wrong_shape_is_wrong_for_every_ratio(quick: GeminiStandIn, ratio: AspectRatio) -> None:
    picture = picture_of(post(quick, request_of("[fail:wrong-shape]", ratio))[2])

    assert picture.width / picture.height != pytest.approx(ratio.width_over_height, rel=0.06)


@pytest.mark.parametrize("name", ["cut-base64", "cut-image", "not-an-image"])
def test_a_broken_picture_is_valid_base64_that_does_not_decode(
    quick: GeminiStandIn, name: str
) -> None:
    with pytest.raises(OSError, match=r"truncated|cannot identify"):
        picture_of(post(quick, request_of(f"[fail:{name}]"))[2])


def test_a_bomb_is_small_and_claims_to_be_huge(shared: GeminiStandIn) -> None:
    part = parts_of(post(shared, request_of("[fail:bomb]"))[2])[0]

    data = base64.b64decode(part["inlineData"]["data"])
    assert len(data) < 1000
    assert data[16:24] == (50_000).to_bytes(4) * 2


def test_a_failure_that_happens_once_succeeds_at_the_next_request(shared: GeminiStandIn) -> None:
    statuses = [post(shared, request_of("Once [fail:overloaded-once]"))[0] for _ in range(3)]

    assert statuses == [503, 200, 200]


@pytest.mark.parametrize(("latency_s", "directive"), [(0.3, ""), (0.0, "[slow:0.3]")])
def test_latency_and_slow_delay_the_response(latency_s: float, directive: str) -> None:
    with GeminiStandIn(latency_s=latency_s, fixed_picture=True) as stand_in:
        began = time.monotonic()
        status, _, _ = post(stand_in, request_of(f"{directive} A red fox"))

        assert status == 200
        assert 0.3 <= time.monotonic() - began < 3


def send_raw(stand_in: GeminiStandIn, prompt: str) -> socket.socket:
    """A connection on which the request was sent and no response was read."""
    body = json.dumps(request_of(prompt)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nx-goog-api-key: k\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = stand_in.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + body)
    return connection


def test_a_reset_is_a_reset(shared: GeminiStandIn) -> None:
    with send_raw(shared, "[fail:reset]") as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_stopping_closes_a_hanging_connection_at_once() -> None:
    with GeminiStandIn() as stand_in:
        hanging = send_raw(stand_in, "[fail:hang]")
        while not stand_in.requests:
            time.sleep(0.01)
        began = time.monotonic()

    assert time.monotonic() - began < 1
    assert hanging.recv(1) == b""
    hanging.close()


def test_a_script_responds_first_and_leaves_the_rest_to_the_stand_in() -> None:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        stand_in.answer_with(
            lambda request: ModelResponse(418, b"teapot") if "tea" in str(request.body) else None
        )

        assert post(stand_in, request_of("tea"))[::2] == (418, b"teapot")
        assert post(stand_in, request_of("coffee"))[0] == 200


def test_with_a_fixed_picture_every_prompt_gets_the_same(quick: GeminiStandIn) -> None:
    fox, owl = (post(quick, request_of(prompt))[2] for prompt in ("A fox", "An owl"))

    assert fox == owl
    assert picture_of(post(quick, request_of("A fox", "16:9"))[2]).size == SIZES["16:9"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, None])
def test_the_command_prints_its_url_and_stops_on_a_signal_or_at_the_end_of_stdin(
    how: signal.Signals | None,
) -> None:
    command = [sys.executable, "-m", "infra.local.gemini_stand_in", "--fixed-picture"]
    with subprocess.Popen(  # noqa: S603 - this project's own command
        [*command, "--stop-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().decode().strip()
        request = urllib.request.Request(  # noqa: S310 - a URL of this machine
            url + PATH, json.dumps(request_of("A red fox")).encode(), {"x-goog-api-key": "k"}
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
            assert picture_of(response.read()).size == SIZES["1:1"]
        if how is None:
            process.stdin.close()
        else:
            process.send_signal(how)

        assert process.wait(timeout=5) == 0
        assert process.stderr.read() == b""


def test_the_command_explains_every_failure_in_one_line() -> None:
    command = [sys.executable, "-m", "infra.local.gemini_stand_in", "--help"]
    shown = subprocess.run(  # noqa: S603 - this project's own command
        command, capture_output=True, text=True, check=True
    ).stdout

    assert all(line and len(line) < 80 for line in FAILURES.values())
    assert all(f"[fail:{name}]" in shown and line in shown for name, line in FAILURES.items())
