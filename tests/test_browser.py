"""The docs page in a real browser: what a visitor sees and clicks, and what assistive tools read.

ChromeDriver drives Chromium against a local stack. Requests to any other host fail and are counted.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from infra.local.stack import LocalStack
from infra.verify import tools

pytestmark = pytest.mark.real

PATIENCE_S = 30
GENERATE = "/api/v1/models/gemini/generate"
SIZES = {"a phone": (390, 844), "a tablet": (820, 1180), "a desktop": (1440, 900)}
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Smooth scrolling would move a button away from the click.
    "--force-prefers-reduced-motion",
    # No other host can be resolved.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


class Visitor:
    """A browser on the page of one stack."""

    def __init__(self, driver: webdriver.Chrome, stack: LocalStack) -> None:
        self.driver = driver
        self.stack = stack

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def open(self) -> None:
        self.driver.get(self.stack.url)
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.get(self.stack.url)

    def ask(self, prompt: str, key: str | None = None, ratio: str = "1:1") -> None:
        for selector, text in (("#key", key or self.stack.api_key), ("#prompt", prompt)):
            field = self.find(selector)
            field.clear()
            field.send_keys(text)
        self.find(f'input[name="ratio"][value="{ratio}"]').send_keys(Keys.SPACE)
        self.find("#go").click()

    def status(self, kind: str) -> str:
        """The final status line, which must be ``good`` or ``bad``."""
        wait = WebDriverWait(self.driver, PATIENCE_S)
        wait.until(lambda _: not self.is_busy() and self.find("#status").text)
        line = self.find("#status")
        assert kind in (line.get_attribute("class") or "").split(), line.text
        return line.text

    def is_busy(self) -> bool:
        """Whether a generation is in progress; the button keeps its focus meanwhile."""
        return self.find("#go").get_attribute("aria-disabled") == "true"

    def picture(self) -> tuple[int, int]:
        """Width and height in pixels of the picture that is shown."""
        image = self.find("#canvas img")
        WebDriverWait(self.driver, PATIENCE_S).until(
            lambda _: self.driver.execute_script("return arguments[0].naturalWidth > 0", image)
        )
        size = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
        width, height = self.driver.execute_script(size, image)
        return width, height

    def console_errors(self) -> list[str]:
        """Errors in the console, apart from the error responses that a test provokes."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]  # so in selenium
        return [
            entry["message"]
            for entry in entries
            if entry["level"] == "SEVERE" and "Failed to load resource" not in entry["message"]
        ]

    def other_hosts(self) -> set[str]:
        """Other hosts that the browser sent requests to since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]  # as above
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        hosts = {urlsplit(url).netloc for url in urls if url.startswith("http")}
        return hosts - {urlsplit(self.stack.url).netloc}


@contextmanager
def chromium(width: int, height: int, *more: str) -> Iterator[webdriver.Chrome]:
    binary, driver_path = tools.browser()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (*_SWITCHES, *more, f"--window-size={width},{height}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        driver.set_window_size(width, height)
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0.3) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium(*SIZES["a desktop"]) as driver:
        yield driver


@pytest.fixture
def visitor(browser: webdriver.Chrome, stack: LocalStack) -> Iterator[Visitor]:
    """On the freshly opened page; at the end there may be no console error and no other host."""
    visitor = Visitor(browser, stack)
    visitor.open()
    yield visitor
    assert visitor.console_errors() == []
    assert visitor.other_hosts() == set()


def test_a_prompt_becomes_a_picture_of_the_chosen_shape(visitor: Visitor) -> None:
    key = visitor.stack.open_account("painter", 100)
    visitor.ask("A hut in the snow", key, ratio="16:9")
    line = visitor.status("good")
    width, height = visitor.picture()
    assert width / height == pytest.approx(16 / 9, rel=0.02)
    assert "for 5 credits" in line
    assert "95 credits left" in line
    assert visitor.find("#canvas img").get_attribute("alt") == "A hut in the snow"


def test_a_clock_runs_while_gemini_draws(visitor: Visitor) -> None:
    visitor.ask("A hut [slow:1.5]")
    seen = set()
    ends_at = time.monotonic() + 1.2
    while time.monotonic() < ends_at:
        seen |= {each.text for each in visitor.driver.find_elements(By.CSS_SELECTOR, ".clock")}
        assert not visitor.find("#go").is_enabled()
    assert len(seen) > 3
    visitor.status("good")


def test_the_request_is_shown_as_a_curl_command_without_the_key(visitor: Visitor) -> None:
    visitor.ask("It's a 'quoted' hut", ratio="9:16")
    visitor.status("good")
    shown = visitor.find("#curl").get_attribute("textContent") or ""
    assert visitor.stack.api_key not in shown
    assert f"curl -sS {visitor.stack.url}/api/v1/models/gemini/generate" in shown
    assert '"aspectRatio":"9:16"' in shown
    assert r"It'\''s a '\''quoted'\'' hut" in shown


def test_a_refused_prompt_shows_the_reason_and_the_refund(visitor: Visitor) -> None:
    key = visitor.stack.open_account("refused", 100)
    visitor.ask("A hut [fail:safety]", key)
    line = visitor.status("bad")
    assert "Content policy violation" in line
    assert "This request costs nothing" in line
    visitor.ask("A hut", key)
    assert "95 credits left" in visitor.status("good")


_PENDING = {"X-Credits-Charged": "5", "Location": "/api/v1/generations/1", "Retry-After": "60"}
_REFUND = {"status": "refunded", "message": "Image generation timed out", "creditsRefunded": 5}


def answers(visitor: Visitor, replies: dict[str, list[tuple[int, dict[str, str], object]]]) -> None:
    """Lets the page get ``replies`` to its calls, by path: status, headers and body."""
    visitor.driver.execute_script(
        """
        const replies = arguments[0];
        window.fetch = async (path) => {
          const left = replies[path] ?? [[404, {}, {}]];
          const [status, headers, body] = left.length > 1 ? left.shift() : left[0];
          if (status === 0) throw new TypeError("the connection broke");
          const text = typeof body === "string" ? body : JSON.stringify(body);
          return new Response(text, {status, headers});
        };
        """,
        replies,
    )


@pytest.mark.parametrize(
    "reply",
    [
        (500, {}, {"message": "Internal Server Error"}),
        (503, {}, {"message": "Service Unavailable"}),
        (502, {}, "<html>a proxy's page</html>"),
        (0, {}, {}),
    ],
    ids=["a gateway's 500", "a gateway's 503", "a proxy's 502", "a broken connection"],
)
def test_a_response_without_a_stated_cost_is_not_called_free(
    reply: tuple[int, dict[str, str], object], visitor: Visitor
) -> None:
    answers(visitor, {GENERATE: [reply]})
    visitor.ask("A hut")
    line = visitor.status("bad")
    assert "It is not known whether this request was charged" in line
    assert "same Idempotency-Key" in line
    for untrue in ("refunded", "costs nothing", "Nothing was charged"):
        assert untrue not in line


@pytest.mark.parametrize("ending", ["settled", "refunded"])
def test_a_pending_outcome_is_shown_and_followed_to_its_end(ending: str, visitor: Visitor) -> None:
    image = {"imageUrl": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "creditsCharged": 5}
    settled = {"status": "settled", "durationMs": 61_000, **image}
    end = settled if ending == "settled" else _REFUND
    failed = (500, _PENDING, {"error": "Failed", "message": "Image generation timed out"})
    answers(
        visitor,
        {
            GENERATE: [failed],
            _PENDING["Location"]: [(200, {}, {"status": "reserved"}), (200, {}, end)],
            "/api/v1/billing/credits": [(200, {}, {"credits": 95})],
        },
    )
    visitor.ask("A hut")
    line = visitor.status("bad")
    assert "The outcome is pending: 5 credits are held" in line
    assert "nothing" not in line
    last = "for 5 credits. 95 credits left" if ending == "settled" else "This request costs nothing"
    WebDriverWait(visitor.driver, PATIENCE_S).until(
        lambda _: last.lower() in visitor.find("#status").text.lower()
    )


def test_an_empty_account_shows_the_missing_credits(visitor: Visitor) -> None:
    visitor.ask("A hut", visitor.stack.open_account("empty", 3))
    line = visitor.status("bad")
    assert "3 of the 5" in line
    assert "This request costs nothing" in line


def test_a_wrong_key_has_its_own_message(visitor: Visitor) -> None:
    visitor.ask("A hut", "gg_unknown_not-a-key")
    assert "This API key is not valid" in visitor.status("bad")


def test_without_a_key_no_request_is_sent_and_the_field_gets_focus(visitor: Visitor) -> None:
    visitor.find("#prompt").send_keys("A hut")
    visitor.find("#go").click()
    assert visitor.status("bad") == "Paste an API key first."
    assert visitor.driver.switch_to.active_element == visitor.find("#key")


def test_the_latest_pictures_are_shown_as_thumbnails(visitor: Visitor) -> None:
    key = visitor.stack.open_account("collector", 100)
    for prompt in ("First", "Second"):
        visitor.ask(prompt, key)
        visitor.status("good")
    WebDriverWait(visitor.driver, PATIENCE_S).until(
        lambda driver: len(driver.find_elements(By.CSS_SELECTOR, "#strip img")) == 2
    )
    thumbnails = visitor.driver.find_elements(By.CSS_SELECTOR, "#strip img")
    assert [each.get_attribute("alt") for each in thumbnails] == ["Second", "First"]


def test_the_key_is_kept_in_the_tab_only(visitor: Visitor) -> None:
    visitor.ask("A hut")
    visitor.status("good")
    visitor.driver.refresh()
    assert visitor.find("#key").get_attribute("value") == visitor.stack.api_key
    visitor.driver.switch_to.new_window("tab")
    visitor.driver.get(visitor.stack.url)
    assert visitor.find("#key").get_attribute("value") == ""
    assert visitor.driver.execute_script("return localStorage.length + document.cookie.length") == 0
    visitor.driver.close()
    visitor.driver.switch_to.window(visitor.driver.window_handles[0])


def test_everything_can_be_done_with_the_keyboard_alone(visitor: Visitor) -> None:
    chain = webdriver.ActionChains(visitor.driver)
    visitor.find("#key").click()
    chain.send_keys(visitor.stack.api_key, Keys.TAB, "A hut", Keys.TAB)
    chain.send_keys(Keys.ARROW_RIGHT, Keys.TAB, Keys.ENTER).perform()
    visitor.status("good")
    width, height = visitor.picture()
    assert width / height == pytest.approx(2 / 3, rel=0.03)


def test_the_examples_can_be_switched_by_language(visitor: Visitor) -> None:
    def shown() -> list[str]:
        panels = visitor.driver.find_elements(By.CSS_SELECTOR, '[role="tabpanel"]')
        return [panel.get_attribute("id") or "" for panel in panels if panel.is_displayed()]

    assert shown() == ["panel-curl"]
    visitor.find("#tab-python").click()
    assert shown() == ["panel-python"]
    visitor.find("#tab-python").send_keys(Keys.ARROW_RIGHT)
    assert shown() == ["panel-javascript"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_accessible_at_any_size_in_light_and_dark(
    size: str, scheme: str, stack: LocalStack
) -> None:
    dark = ("--force-dark-mode", "--enable-features=WebUIDarkMode") if scheme == "dark" else ()
    with chromium(*SIZES[size], *dark) as driver:
        emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        visitor = Visitor(driver, stack)
        visitor.open()
        visitor.ask("A hut [fail:safety]")
        visitor.status("bad")

        overflow = "return document.documentElement.scrollWidth - window.innerWidth"
        assert driver.execute_script(overflow) <= 0, "the page scrolls sideways"
        driver.execute_script(tools.axe().read_text(encoding="utf-8"))
        found = driver.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
        )
        faults = [
            f"{fault['id']} ({fault['impact']}): {fault['nodes'][0]['html']}"
            for fault in found["violations"]
        ]
        assert faults == []
        assert visitor.console_errors() == []
        assert visitor.other_hosts() == set()
