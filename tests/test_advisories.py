"""Known vulnerabilities of what is pinned, as ``make advisories`` tells of them."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.verify import advisories, tools
from infra.verify.advisories import OLD_ON_PURPOSE

ADVISORY = {
    "id": "GHSA-2222-3333-4444",
    "summary": "A picture too wide takes all memory",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "pillow", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999.1"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """https://google.github.io/osv.dev/post-v1-query/."""

    vulnerable = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = asked["package"]["name"] == self.vulnerable
        body = json.dumps({"vulns": [ADVISORY]} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def database() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def test_without_the_database_one_sentence_says_that_nothing_was_looked_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        free = server.server_port

    status = advisories.main(f"http://127.0.0.1:{free}/v1/query")

    assert status == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Known vulnerabilities were not looked up: ")
    assert printed.count("\n") == 1


@pytest.mark.real
def test_a_known_vulnerability_fails_and_says_where_it_is_and_what_mends_it(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Osv, "vulnerable", "pillow")

    status = advisories.main(database)

    printed = capsys.readouterr().out
    assert status == 1
    assert re.search(
        r"^runtime.txt: \d+ packages, 1 known vulnerabilities\n"
        r"  pillow==[\d.]+: GHSA-2222-3333-4444, fixed in 9999.1$",
        printed,
        re.MULTILINE,
    )


@pytest.mark.real
def test_every_list_is_looked_up(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = {path.name for path in tools.REQUIREMENTS.glob("*.txt")}
    lists = sorted(found - OLD_ON_PURPOSE)
    assert found >= OLD_ON_PURPOSE

    status = advisories.main(database)

    told = re.findall(
        r"^(\S+): ([1-9]\d*) packages, 0 known", capsys.readouterr().out, re.MULTILINE
    )
    assert (status, [name for name, _ in told]) == (0, lists)
