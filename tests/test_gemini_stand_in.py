"""The Gemini stand-in: what a contributor sees of it, and that it speaks as Google does."""

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
def test_each_ratio_gets_a_jpeg_of_its_shape_that_decodes(
    shared: GeminiStandIn, ratio: AspectRatio
) -> None:
    status, headers, body = post(shared, request_of("A red fox", ratio))

    picture = picture_of(body)
    assert status == 200
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert (picture.format, picture.size) == ("JPEG", SIZES[ratio])
    assert picture.width / picture.height == pytest.approx(ratio.width_over_height, rel=0.06)


def test_without_a_ratio_it_chooses_one_of_its_own(shared: GeminiStandIn) -> None:
    _, _, body = post(shared, request_of("A red fox", None))

    assert picture_of(body).size == SIZES["4:3"]


def test_the_same_prompt_gives_the_same_picture_and_another_gives_another(
    shared: GeminiStandIn,
) -> None:
    fox, fox_again, owl = (
        picture_of(post(shared, request_of(prompt))[2]).tobytes()
        for prompt in ("A red fox", "A red fox", "A white owl")
    )

    assert fox == fox_again
    assert fox != owl


def test_a_prompt_that_can_not_be_written_in_the_picture_is_painted_all_the_same(
    shared: GeminiStandIn,
) -> None:
    for prompt in ("東京の夜 🌃", "é" * 4000, "word " * 800, "\x00\t\n"):
        assert picture_of(post(shared, request_of(prompt))[2]).size == (1024, 1024)


def test_an_answer_has_what_googles_has(shared: GeminiStandIn) -> None:
    _, _, body = post(shared, request_of("A red fox"))

    answer = json.loads(body)
    candidate = answer["candidates"][0]
    assert (candidate["finishReason"], candidate["index"]) == ("STOP", 0)
    assert candidate["content"]["role"] == "model"
    assert candidate["content"]["parts"][0]["thoughtSignature"]
    assert answer["usageMetadata"]["totalTokenCount"] == 1136


def test_a_request_is_remembered_with_path_header_and_body(shared: GeminiStandIn) -> None:
    sent = request_of("Remember me")
    post(shared, sent, **{"X-Server-Timeout": "22"})

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
    ],
)
def test_a_directive_anywhere_in_the_prompt_makes_it_fail(
    shared: GeminiStandIn, name: str, status: int, words: str
) -> None:
    answered, _, body = post(shared, request_of(f"A fox [fail:{name}] in the snow"))

    assert answered == status
    assert words in body.decode()


def test_a_directive_that_does_not_exist_is_answered_with_all_that_do(
    shared: GeminiStandIn,
) -> None:
    status, _, body = post(shared, request_of("[fail:nonsense]"))

    sentence = json.loads(body)["error"]["message"]
    assert status == 400
    assert all(name in sentence for name in FAILURES)


def test_every_failure_has_a_line_that_says_what_happens() -> None:
    assert all(line and "\n" not in line and len(line) < 80 for line in FAILURES.values())


@pytest.mark.parametrize(
    ("name", "image_format", "declared"),
    [
        ("png", "PNG", "image/png"),
        ("webp", "WEBP", "image/webp"),
        ("wrong-mime", "WEBP", "image/png"),
    ],
)
def test_pictures_come_in_other_formats_on_request(
    shared: GeminiStandIn, name: str, image_format: str, declared: str
) -> None:
    _, _, body = post(shared, request_of(f"[fail:{name}]", "16:9"))

    assert (picture_of(body).format, picture_of(body).size) == (image_format, SIZES["16:9"])
    assert parts_of(body)[0]["inlineData"]["mimeType"] == declared


def test_a_thought_comes_before_the_picture_and_is_another(shared: GeminiStandIn) -> None:
    _, _, body = post(shared, request_of("[fail:thought-first]"))

    draft, final = parts_of(body)
    assert draft["thought"] is True
    assert "thought" not in final
    assert draft["inlineData"]["data"] != final["inlineData"]["data"]


@pytest.mark.parametrize("ratio", list(AspectRatio))
def test_the_wrong_shape_is_wrong_for_every_ratio(quick: GeminiStandIn, ratio: AspectRatio) -> None:
    picture = picture_of(post(quick, request_of("[fail:wrong-shape]", ratio))[2])

    assert picture.width / picture.height != pytest.approx(ratio.width_over_height, rel=0.06)


@pytest.mark.parametrize("name", ["cut-base64", "cut-image", "not-an-image"])
def test_a_broken_picture_is_valid_base64_and_does_not_decode(
    quick: GeminiStandIn, name: str
) -> None:
    _, _, body = post(quick, request_of(f"[fail:{name}]"))

    with pytest.raises(OSError, match=r"truncated|cannot identify"):
        picture_of(body)


def test_a_bomb_is_small_and_claims_to_be_huge(shared: GeminiStandIn) -> None:
    _, _, body = post(shared, request_of("[fail:bomb]"))

    data = base64.b64decode(parts_of(body)[0]["inlineData"]["data"])
    assert len(data) < 1000
    assert data[16:24] == (50_000).to_bytes(4) * 2


def test_a_failure_that_happens_once_is_over_at_the_next_request_with_that_prompt(
    shared: GeminiStandIn,
) -> None:
    statuses = [post(shared, request_of("Once [fail:overloaded-once]"))[0] for _ in range(3)]

    assert statuses == [503, 200, 200]


def test_slow_waits_and_then_answers(shared: GeminiStandIn) -> None:
    began = time.monotonic()
    status, _, _ = post(shared, request_of("[slow:0.3] A red fox"))

    assert status == 200
    assert 0.3 <= time.monotonic() - began < 3


def test_a_reset_is_a_reset(shared: GeminiStandIn) -> None:
    body = json.dumps(request_of("[fail:reset]")).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nx-goog-api-key: k\r\nContent-Length: {len(body)}"
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_script_answers_in_its_place_until_it_says_none() -> None:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        stand_in.answer_with(
            lambda request: ModelResponse(418, b"teapot") if "tea" in str(request.body) else None
        )

        assert post(stand_in, request_of("tea"))[::2] == (418, b"teapot")
        assert post(stand_in, request_of("coffee"))[0] == 200


def test_latency_comes_before_every_answer() -> None:
    with GeminiStandIn(latency_s=0.2, fixed_picture=True) as stand_in:
        began = time.monotonic()
        post(stand_in, request_of("A red fox"))

        assert time.monotonic() - began >= 0.2


def test_with_a_fixed_picture_every_prompt_gets_the_same(quick: GeminiStandIn) -> None:
    fox, owl = (post(quick, request_of(prompt))[2] for prompt in ("A fox", "An owl"))
    wide = post(quick, request_of("A fox", "16:9"))[2]

    assert fox == owl
    assert picture_of(wide).size == SIZES["16:9"]


def test_it_stops_at_once_though_a_client_hangs_on_it() -> None:
    with GeminiStandIn() as stand_in:
        host, port = stand_in.url.removeprefix("http://").split(":")
        body = json.dumps(request_of("[fail:hang]")).encode()
        head = f"POST {PATH} HTTP/1.1\r\nx-goog-api-key: k\r\nContent-Length: {len(body)}\r\n\r\n"
        hanging = socket.create_connection((host, int(port)))
        hanging.sendall(head.encode() + body)
        while not stand_in.requests:
            time.sleep(0.01)
        began = time.monotonic()

    assert time.monotonic() - began < 1
    assert hanging.recv(1) == b""
    hanging.close()


@pytest.mark.parametrize("how", ["sigterm", "sigint", "stdin"])
def test_the_command_prints_its_url_and_ends_when_told(how: str) -> None:
    command = [sys.executable, "-m", "infra.local.gemini_stand_in", "--fixed-picture"]
    process = subprocess.Popen(  # noqa: S603 - this project's own command
        [*command, "--stop-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip()
    with urllib.request.urlopen(  # noqa: S310 - a URL of this machine
        urllib.request.Request(  # noqa: S310 - as above
            url + PATH, json.dumps(request_of("A red fox")).encode(), {"x-goog-api-key": "k"}
        )
    ) as answer:
        assert picture_of(answer.read()).size == SIZES["1:1"]

    if how == "stdin":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)

    assert process.wait(timeout=5) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def test_the_command_explains_every_failure() -> None:
    command = [sys.executable, "-m", "infra.local.gemini_stand_in", "--help"]
    shown = subprocess.run(  # noqa: S603 - this project's own command
        command, capture_output=True, text=True, check=True
    ).stdout

    assert all(f"[fail:{name}]" in shown and line in shown for name, line in FAILURES.items())
