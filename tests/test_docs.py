"""The docs page as it is sent: whole in itself, true, and safe to open."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from infra.local.stack import LocalStack
from lib.http.openapi import openapi
from lib.picture.aspect_ratio import AspectRatio

RUN_S = 60


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.fixture(scope="module")
def sent(stack: LocalStack) -> tuple[str, Mapping[str, str]]:
    """The page and its headers."""
    where = urlsplit(stack.url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.read().decode(), named
    finally:
        connection.close()


@pytest.fixture(scope="module")
def page(sent: tuple[str, Mapping[str, str]]) -> str:
    return sent[0]


def test_it_is_a_page_that_says_what_it_is(sent: tuple[str, Mapping[str, str]]) -> None:
    page, headers = sent

    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert page.startswith("<!doctype html>")
    assert "{{" not in page.replace("${{", "")


def test_its_policy_lets_its_own_script_and_styles_run_and_nothing_else(
    sent: tuple[str, Mapping[str, str]], stack: LocalStack
) -> None:
    page, headers = sent
    policy = dict(
        each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";")
    )

    def digest_of(tag: str) -> str:
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()

    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest_of('script')}'"
    assert policy["style-src"] == f"'sha256-{digest_of('style')}'"
    assert policy["img-src"] == f"'self' data: {stack.url}"
    assert policy["connect-src"] == "'self'"
    assert not re.search(r"\sstyle=|\son\w+=", page), "the policy forbids these"


def test_nothing_on_it_comes_from_anywhere_else(page: str, stack: LocalStack) -> None:
    addresses = set(re.findall(r"https?://[^\s\"'<&`$]+", page))

    strangers = {address for address in addresses if not address.startswith(stack.url)}
    assert strangers == {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody asks"
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", page)


def test_its_tables_are_the_contract(page: str) -> None:
    document = openapi("https://here")
    generate = document["paths"]["/api/v1/models/gemini/generate"]["post"]
    for path in document["paths"]:
        assert path in page
    for name in ("GenerateRequest", "GenerateResponse", "AcceptedResponse", "GenerationResponse"):
        for field in document["components"]["schemas"][name]["properties"]:
            assert f"<code>{field}</code>" in page
    for status, response in generate["responses"].items():
        if int(status) >= 400:
            for code, example in response["content"]["application/json"]["examples"].items():
                said = example["value"].get("message", example["value"]["error"])
                row = f'<tr><th scope="row">{status}</th><td><code>{code}</code></td>'
                assert f"{row}<td>{html.escape(said)}</td></tr>" in page


def test_all_ten_ratios_can_be_chosen_and_are_drawn_to_scale(page: str) -> None:
    choices = re.findall(
        r'name="ratio" value="([\d:]+)"( checked)?>.*?width="([\d.]+)" height="([\d.]+)" rx', page
    )

    assert [ratio for ratio, *_ in choices] == [ratio.value for ratio in AspectRatio]
    assert [ratio for ratio, checked, *_ in choices if checked] == ["1:1"]
    for ratio, _, width, height in choices:
        drawn = float(width) / float(height)
        assert drawn == pytest.approx(AspectRatio(ratio).width_over_height, rel=0.02)


def test_whoever_calls_themselves_a_script_is_shown_as_text(stack: LocalStack) -> None:
    where = urlsplit(stack.url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=30)
    connection.request("GET", "/", headers={"Host": "a<script>alert(1)</script>"})
    page = connection.getresponse().read().decode()
    connection.close()

    assert "<script>alert" not in page


def examples(page: str) -> dict[str, str]:
    found = re.findall(r'<code data-example="(\w+)">(.*?)</code>', page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def run(command: list[str], stack: LocalStack, text: str | None = None) -> str:
    environment = {"PATH": os.environ["PATH"], "API_KEY": stack.api_key, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(  # noqa: S603 - the page's own examples, for this machine's server
        command,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_is_an_example_in_each_of_three_languages(page: str) -> None:
    assert set(examples(page)) == {"curl", "python", "javascript"}


@pytest.mark.real
def test_the_curl_example_makes_an_image(page: str, stack: LocalStack) -> None:
    answer = json.loads(run(["/bin/sh", "-euc", examples(page)["curl"]], stack))

    assert answer["imageUrl"].startswith(stack.url)


def test_the_python_example_makes_an_image(page: str, stack: LocalStack) -> None:
    said = run([sys.executable, "-"], stack, examples(page)["python"])

    assert said.startswith(stack.url)
    assert said.endswith(".png")


@pytest.mark.real
def test_the_javascript_example_waits_for_an_image(page: str, stack: LocalStack) -> None:
    node = shutil.which("node")
    assert node is not None, "npm, which `make verify` needs, brings it"
    said = run([node, "--input-type=module", "-"], stack, examples(page)["javascript"])

    assert said.startswith(stack.url)
    assert said.endswith(".png")
