"""The docs page: self-contained, consistent with the contract, and safe to open."""

import base64
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import handlers.account
from handlers.dependencies import Dependencies
from infra.local.functions import LambdaContext
from infra.local.stack import LocalStack
from lib.errors import ServiceError
from lib.http import docs
from lib.http.gateway import GATEWAY_EXAMPLE
from lib.http.guide import guide
from lib.http.openapi import openapi
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.provenance import DIGITAL_SOURCE_TYPE
from lib.settings import Settings
from tests.customer import Reply, fetch

RUN_S = 60


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.fixture(scope="module")
def sent(stack: LocalStack) -> Reply:
    return fetch(f"{stack.url}/")


@pytest.fixture(scope="module")
def page(sent: Reply) -> str:
    return sent.body.decode()


def test_it_is_an_html_page_without_placeholders(sent: Reply, page: str) -> None:
    assert sent.status == 200
    assert sent.headers["content-type"] == "text/html; charset=utf-8"
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert page.startswith("<!doctype html>")
    assert "{{" not in page.replace("${{", "")


def test_its_policy_allows_its_own_script_and_styles_and_nothing_else(
    sent: Reply, page: str, stack: LocalStack
) -> None:
    policy = dict(
        each.strip().split(" ", 1) for each in sent.headers["content-security-policy"].split(";")
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


def test_it_loads_nothing_from_another_host(page: str, stack: LocalStack) -> None:
    addresses = set(re.findall(r"https?://[^\s\"'<&`$]+", page))
    strangers = {
        address
        for address in addresses
        if not address.startswith((stack.url, "https://images.example.com/"))
    }
    assert strangers == {"http://www.w3.org/2000/svg"}, "SVG's namespace, which is not fetched"
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", page)


def test_it_names_every_route_field_header_and_section_of_the_contract(page: str) -> None:
    document = openapi("https://here")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()}</span> <code>{path}</code>" in page
    for_machines = {"HealthResponse", "Jwk", "JwksResponse"}
    for name, schema in document["components"]["schemas"].items():
        if name in for_machines:
            continue
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in page or f"&quot;{field}&quot;" in page, field
    for header in document["components"]["headers"]:
        assert f"<code>{header}</code>" in page
    for section in guide():
        assert f'id="{section.anchor}"' in page
        assert f'href="#{section.anchor}"' in page


def test_each_answer_of_each_route_has_an_example(page: str) -> None:
    text = html.unescape(page)
    for methods in openapi("https://here")["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json", {})
                for name, example in content.get("examples", {}).items():
                    is_error = int(status) >= 400
                    anchor = f"gateway-{status}" if name == GATEWAY_EXAMPLE else name
                    body = json.dumps(example["value"], indent=2)
                    shown = f'href="#{anchor}"' if is_error else body
                    unique_to_a_route = is_error and f"<code>{name}</code>" in text
                    assert shown in text or unique_to_a_route or "security" in operation, name
    assert '"creditsRemaining": 2' in text


def test_its_anchors_are_unique_and_every_link_on_the_page_leads_to_one(page: str) -> None:
    anchors = re.findall(r'\sid="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
    assert set(errors_by_code(ServiceError)) - {"generation_failed"} <= set(anchors)


def test_the_request_table_names_the_ten_ratios(page: str) -> None:
    row = page.split("<dt><code>aspectRatio</code>", maxsplit=1)[1].split("</dd>", maxsplit=1)[0]
    assert re.findall(r"<code>(\d+:\d+)</code>", row)[-10:] == [each.value for each in AspectRatio]


def test_it_says_where_to_get_a_key_and_how_long_the_configured_model_takes() -> None:
    shown = docs.page("https://here", "https://help.example/buy", "gemini-3-pro-image")
    assert '<a href="https://help.example/buy">Get a key, credits or help</a>' in shown
    assert "about 19 seconds" in shown
    assert "operator of this service" in docs.page("https://here")
    assert "<li>usually" not in docs.page("https://here", None, "an-unknown-model")


def test_it_is_small(page: str) -> None:
    assert len(page.encode()) < 140_000
    assert len(gzip.compress(page.encode())) < 35_000


def outcome(page: str, status: str, code: str) -> list[str]:
    """The row of one outcome: sentence, credits, whether to try again, and what to do."""
    table = page.split('id="outcomes"')[1].split("</table>", maxsplit=1)[0]
    rows = re.findall(
        r'<span class="code-.">(\w+)</span> (.*?)</th><td>.*?<q>(.*?)</q></td>'
        r"<td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>",
        table,
    )
    plain = [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in rows]
    (found,) = (row[2:] for row in plain if row[:2] == [status, code])
    return found


def errors_by_code(kind: type[ServiceError]) -> dict[str, type[ServiceError]]:
    """Every error of this service that has a code of its own."""
    found = {kind.code: kind} if "code" in vars(kind) else {}
    for child in kind.__subclasses__():
        found |= errors_by_code(child)
    return found


def test_each_error_has_one_row_with_the_cost_and_the_retry_that_its_headers_state(
    page: str,
) -> None:
    abstract = {"generation_failed"}
    for code, kind in errors_by_code(ServiceError).items():
        if code in abstract:
            continue
        _, cost, again, advice = outcome(page, str(kind.status), code)
        assert cost == ("5, held" if kind.credits_charged else "0"), code
        assert again.partition(":")[0] == ("yes" if kind.should_retry else "no"), code
        assert advice, code


@pytest.mark.parametrize(
    ("status", "cost", "again"),
    [("413", "0", "no"), ("429", "0", "yes"), ("500", "unknown", "yes"), ("503", "unknown", "yes")],
)
def test_the_gateways_own_answers_have_rows_that_promise_nothing_unknown(
    status: str, cost: str, again: str, page: str
) -> None:
    _, stated, advised, advice = outcome(page, status, "none: API Gateway")
    assert (stated, advised.partition(":")[0]) == (cost, again)
    assert ("Idempotency-Key" in advice) == (cost == "unknown")


def test_it_calls_no_error_free_that_may_be_charged(page: str) -> None:
    assert "Errors are free" not in page
    assert "a 500 is refunded" not in page
    _, cost, _, advice = outcome(page, "500", "outcome_pending")
    assert cost == "5, held"
    assert "Location" in advice


def test_it_says_how_a_picture_is_marked(page: str) -> None:
    assert DIGITAL_SOURCE_TYPE.rpartition("/")[2] in page
    for term in ("SynthID", "C2PA"):
        assert term in page


def test_it_offers_the_ten_ratios_drawn_to_scale(page: str) -> None:
    choices = re.findall(
        r'name="ratio" value="([\d:]+)"[^>]*?( checked)?>.*?width="([\d.]+)" height="([\d.]+)" rx',
        page,
    )
    assert [ratio for ratio, *_ in choices] == [ratio.value for ratio in AspectRatio]
    assert [ratio for ratio, checked, *_ in choices if checked] == ["1:1"]
    for ratio, _, width, height in choices:
        drawn = float(width) / float(height)
        assert drawn == pytest.approx(AspectRatio(ratio).width_over_height, rel=0.02)


@pytest.mark.parametrize("path", ["/", "/openapi.json"])
def test_the_host_header_decides_nothing(stack: LocalStack, path: str) -> None:
    """Otherwise a cache, or a link to another host name, would send customers' keys elsewhere."""
    headers = {"Host": "evil.example", "X-Forwarded-Proto": "http"}
    answer = fetch(stack.url + path, headers=headers)
    assert b"evil" not in answer.body
    assert answer.body == fetch(stack.url + path).body
    assert stack.url in answer.body.decode()


def test_without_a_public_url_the_gateways_name_for_the_api_is_used_and_escaped() -> None:
    request = {"requestId": "a-request", "domainName": 'api.example"<script>alert(1)</script>'}
    event = {"routeKey": "GET /", "headers": {}, "requestContext": request}
    context: Any = LambdaContext("AccountFunction", "512", 10)
    service = Dependencies(Settings("table", "bucket", "https://images.example", "orgs/", "key"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers.account, "dependencies", lambda: service)
        body = handlers.account.handler(event, context)["body"]
    assert "https://api.example&quot;&lt;script&gt;" in body
    assert "<script>alert" not in body


def test_browsers_are_to_use_https_from_then_on(stack: LocalStack) -> None:
    answer = fetch(stack.url + "/")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def examples(page: str) -> dict[str, str]:
    found = re.findall(r'<code data-example="(\w+)">(.*?)</code>', page, re.DOTALL)
    return {name: html.unescape(re.sub(r"<[^>]+>", "", text)) for name, text in found}


def test_every_example_has_an_idempotency_key_and_a_timeout_of_35_seconds(
    page: str, stack: LocalStack
) -> None:
    shown = examples(page)
    assert set(shown) == {"curl", "python", "javascript", "openai"}
    for text in shown.values():
        assert re.search(r"Idempotency-Key\W+cabin-\w+-1", text)
        assert re.search(r"(max-time |timeout=|timeout\()35", text)
        assert stack.url in text


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


@pytest.mark.real
def test_the_curl_example_makes_an_image(page: str, stack: LocalStack) -> None:
    answer = json.loads(run(["/bin/sh", "-euc", examples(page)["curl"]], stack))
    assert answer["imageUrl"].startswith(stack.url)


def test_the_python_example_makes_an_image(page: str, stack: LocalStack) -> None:
    printed = run([sys.executable, "-"], stack, examples(page)["python"])
    assert printed.startswith(stack.url)
    assert printed.endswith(".png")


@pytest.mark.real
def test_the_javascript_example_makes_an_image(page: str, stack: LocalStack) -> None:
    node = shutil.which("node")
    assert node is not None, "npm, which `make verify` needs, brings it"
    printed = run([node, "--input-type=module", "-"], stack, examples(page)["javascript"])
    assert printed.startswith(stack.url)
    assert printed.endswith(".png")
