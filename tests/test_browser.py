"""The docs page in a real browser: what a visitor sees and clicks, and what assistive tools read.

ChromeDriver drives Chromium against a local stack. Requests to any other host fail and are counted.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from infra.local.stack import LocalStack
from infra.verify import tools
from tests.customer import fetch

pytestmark = pytest.mark.real

PATIENCE_S = 30
GENERATE = "/api/v1/models/gemini/generate"
CREDITS = "/api/v1/billing/credits"
USAGE = "/api/v1/billing/usage"
SIZES = {"a phone": (390, 844), "a tablet": (820, 1180), "a desktop": (1280, 900)}
LOOKS = {
    "light": {"prefers-color-scheme": "light"},
    "dark": {"prefers-color-scheme": "dark"},
    "forced colours": {"forced-colors": "active"},
}
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

    def fill(self, prompt: str, key: str | None = None, ratio: str = "1:1") -> None:
        for selector, text in (("#key", key or self.stack.api_key), ("#prompt", prompt)):
            field = self.find(selector)
            field.clear()
            field.send_keys(text)
        self.find(f'input[name="ratio"][value="{ratio}"]').send_keys(Keys.SPACE)

    def ask(self, prompt: str, key: str | None = None, ratio: str = "1:1") -> None:
        self.fill(prompt, key, ratio)
        self.find("#go").click()

    def value(self, selector: str) -> str:
        return self.find(selector).get_attribute("value") or ""

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        """Waits until ``condition`` is true; what it looks at may be replaced meanwhile."""
        patience = WebDriverWait(
            self.driver, within_s, 0.1, (NoSuchElementException, StaleElementReferenceException)
        )
        patience.until(lambda _: condition())

    def step(self) -> str:
        """The step that is marked as the current one; empty if there is none."""
        return "".join(each.text for each in self.all('.steps [aria-current="step"]'))

    def emulate(self, size: str, look: str) -> None:
        width, height = SIZES[size]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": name, "value": value} for name, value in LOOKS[look].items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def faults(self) -> list[str]:
        """What axe finds on the page as it is now."""
        if not self.driver.execute_script("return window.axe !== undefined"):
            self.driver.execute_script(tools.axe().read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
        )
        return [
            f"{fault['id']} ({fault['impact']}): {fault['nodes'][0]['html']}"
            for fault in found["violations"]
        ]

    def status(self, kind: str, within_s: float = PATIENCE_S) -> str:
        """The final status, which must be ``good`` or ``bad``."""
        self.wait(lambda: not self.is_busy() and self.find(f"#status.{kind}").text, within_s)
        return self.find("#status").text

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


@pytest.fixture
def quick(visitor: Visitor) -> Visitor:
    """Its pauses are a twentieth as long."""
    visitor.driver.execute_script(
        "const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, ms / 20)"
    )
    return visitor


def test_three_clicks_on_the_first_screen_make_a_picture_of_the_chosen_shape(
    visitor: Visitor,
) -> None:
    key = visitor.stack.open_account("painter", 100)
    visitor.emulate("a desktop", "light")
    for selector, text in (("#key", key), ("#prompt", "A hut in the snow")):
        visitor.find(selector).click()
        visitor.driver.switch_to.active_element.send_keys(text)
    visitor.wait(lambda: "100 credits, 20 images" in visitor.find("#balance").text)
    visitor.find('input[value="16:9"]').send_keys(Keys.SPACE)
    visitor.find("#go").click()
    line = visitor.status("good")
    width, height = visitor.picture()
    assert visitor.driver.execute_script("return scrollY") == 0
    assert width / height == pytest.approx(16 / 9, rel=0.02)
    assert "5 credits charged. 95 credits left" in line
    assert visitor.find("#canvas img").get_attribute("alt") == "A hut in the snow"


def test_a_model_that_is_slower_than_a_request_is_waited_for_and_keeps_the_focus(
    visitor: Visitor,
) -> None:
    visitor.ask("A hut [slow:26]", visitor.stack.open_account("patient", 100))
    visitor.wait(lambda: visitor.step() == "Drawing")
    first = visitor.find(".clock").text
    visitor.wait(lambda: visitor.find(".clock").text != first, 2)
    assert "5 credits are held" in visitor.find("#status").text
    assert visitor.faults() == []
    assert visitor.driver.switch_to.active_element == visitor.find("#go")
    visitor.find("#go").click()
    line = visitor.status("good", within_s=60)
    assert "Done in 26" in line
    assert "95 credits left" in line


@pytest.mark.parametrize("when", ["accepted", "unanswered"])
def test_a_reload_goes_on_with_the_same_request(when: str, visitor: Visitor) -> None:
    key = visitor.stack.open_account(f"impatient-{when}", 100)
    visitor.ask("A hut [slow:3]", key)
    visitor.wait(lambda: visitor.step() == "Drawing")
    kept = visitor.driver.execute_script("return sessionStorage.getItem('pending')")
    assert key not in kept
    if when == "unanswered":
        forgotten = json.dumps(json.loads(kept) | {"location": None})
        visitor.driver.execute_script("sessionStorage.setItem('pending', arguments[0])", forgotten)
    visitor.driver.refresh()
    assert visitor.value("#prompt") == "A hut [slow:3]"
    assert "95 credits left" in visitor.status("good")
    visitor.picture()
    assert visitor.driver.execute_script("return sessionStorage.getItem('pending')") is None


def test_a_refused_prompt_shows_the_reason_and_the_refund(visitor: Visitor) -> None:
    key = visitor.stack.open_account("refused", 100)
    visitor.ask("A hut [fail:safety]", key)
    line = visitor.status("bad")
    assert "Content policy violation" in line
    assert "5 credits refunded: this request costs nothing" in line
    visitor.wait(lambda: "5 credits refunded" in visitor.find("#strip .refunded").text)
    assert "Content policy violation" in visitor.find("#strip .refunded").text
    visitor.ask("A hut", key)
    assert "95 credits left" in visitor.status("good")


_PENDING = {
    "X-Credits-Charged": "5",
    "X-Error-Code": "outcome_pending",
    "Location": "/api/v1/generations/1",
}
_IMAGE = {"imageUrl": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "creditsCharged": 5}
_REFUND = {"status": "refunded", "message": "Image generation timed out", "creditsRefunded": 5}
_BALANCE = {"credits": 95, "creditsPerImage": 5}
Reply = tuple[int, dict[str, str], object]


def answers(visitor: Visitor, replies: dict[str, list[Reply]]) -> None:
    """Lets the page get ``replies`` to its calls, by path: status, headers and body.

    The last one is repeated. Other paths are 404. ``window.sent`` has the idempotency keys,
    ``window.polls`` how often a generation was asked for.
    """
    visitor.driver.execute_script(
        """
        const replies = arguments[0];
        window.sent = [];
        window.polls = 0;
        window.fetch = async (path, options) => {
          const left = replies[path] ?? [[404, {}, {}]];
          const [status, headers, body] = left.length > 1 ? left.shift() : left[0];
          if (path.startsWith("/api/v1/generations/")) window.polls += 1;
          if (options.method === "POST") window.sent.push(options.headers["Idempotency-Key"]);
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
def test_a_response_without_a_stated_cost_is_not_called_free_and_repeated_with_its_key(
    reply: Reply, quick: Visitor
) -> None:
    answers(quick, {GENERATE: [reply], CREDITS: [(200, {}, _BALANCE)]})
    quick.ask("A hut")
    line = quick.status("bad")
    assert "It is not known whether this request was charged" in line
    assert "same Idempotency-Key" in line
    for untrue in ("refunded", "costs nothing", "Nothing was charged"):
        assert untrue not in line
    sent = quick.driver.execute_script("return window.sent")
    assert len(sent) == 5
    assert quick.faults() == []
    assert len(set(sent)) == 1

    done = (200, {"X-Credits-Charged": "0"}, _IMAGE | {"durationMs": 4000})
    answers(quick, {GENERATE: [reply, done], CREDITS: [(200, {}, _BALANCE)]})
    quick.find("#status button").click()
    assert quick.driver.switch_to.active_element == quick.find("#go")
    assert "Done in 4.0 s. 5 credits charged" in quick.status("good")
    assert quick.driver.execute_script("return window.sent") == [sent[0]] * 2


@pytest.mark.parametrize("code", ["unauthorized", "rate_limited"])
def test_a_refusal_after_a_lost_response_does_not_call_the_lost_request_free(
    code: str, quick: Visitor
) -> None:
    status = {"unauthorized": 401, "rate_limited": 429}[code]
    refused = (status, {"X-Error-Code": code, "X-Credits-Charged": "0"}, {"error": "Refused"})
    lost: Reply = (503, {}, {"message": "Service Unavailable"})
    answers(quick, {GENERATE: [lost, refused], CREDITS: [(200, {}, _BALANCE)]})
    quick.ask("A hut")
    quick.wait(lambda: "Refused" in quick.status("bad"))
    line = quick.status("bad")
    assert "It is not known whether this request was charged" in line
    assert "costs nothing" not in line
    answers(quick, {GENERATE: [refused], CREDITS: [(200, {}, _BALANCE)]})
    quick.find("#status button").click()
    quick.wait(lambda: quick.driver.execute_script("return window.sent.length") == 1)
    assert "costs nothing" not in quick.status("bad")


def test_a_gateway_that_throttles_costs_nothing(quick: Visitor) -> None:
    throttled: Reply = (429, {}, {"message": "Too Many Requests"})
    answers(quick, {GENERATE: [throttled], CREDITS: [(200, {}, _BALANCE)]})
    quick.ask("A hut")
    line = quick.status("bad")
    assert "Too Many Requests (429)" in line
    assert "This request costs nothing" in line


def test_a_lost_response_of_a_service_without_a_queue_is_waited_for(quick: Visitor) -> None:
    busy = (409, {"X-Error-Code": "generation_in_flight", "Retry-After": "3"}, {"error": "Busy"})
    done = (200, {"X-Credits-Charged": "0"}, _IMAGE | {"durationMs": 24_000})
    lost: Reply = (503, {}, {"message": "Service Unavailable"})
    answers(quick, {GENERATE: [lost, *[busy] * 8, done], CREDITS: [(200, {}, _BALANCE)]})
    quick.ask("A hut")
    quick.wait(lambda: quick.step() == "Drawing")
    assert "Done in 24.0 s. 5 credits charged" in quick.status("good")


def test_a_gateway_that_fails_once_costs_one_image(quick: Visitor) -> None:
    key = quick.stack.open_account("unlucky", 100)
    quick.driver.execute_script(
        """
        const real = window.fetch;
        let lost = 0;
        window.fetch = async (path, options) => {
          const response = await real(path, options);
          if (options.method !== "POST" || lost++) return response;
          return new Response('{"message": "Service Unavailable"}', {status: 503});
        };
        """
    )
    quick.ask("A hut", key)
    assert "5 credits charged. 95 credits left" in quick.status("good")


@pytest.mark.parametrize("ending", ["settled", "refunded"])
def test_a_pending_outcome_is_shown_and_followed_to_its_end(ending: str, quick: Visitor) -> None:
    end = {"status": "settled", "durationMs": 61_000, **_IMAGE} if ending == "settled" else _REFUND
    failed = (500, _PENDING, {"error": "Failed", "message": "Image generation timed out"})
    reserved = (200, {"Retry-After": "20"}, {"status": "reserved"})
    answers(
        quick,
        {
            GENERATE: [failed],
            _PENDING["Location"]: [reserved, (200, {}, end)],
            CREDITS: [(200, {}, _BALANCE)],
        },
    )
    quick.ask("A hut")
    quick.wait(lambda: "The outcome is pending: 5 credits are held" in quick.find("#status").text)
    assert "nothing" not in quick.find("#status").text
    time.sleep(0.5)
    assert quick.driver.execute_script("return window.polls") == 1, "Retry-After says 20 s"
    last = "5 credits charged. 95 credits left" if ending == "settled" else "costs nothing"
    quick.wait(lambda: last in quick.find("#status").text)


def test_an_empty_account_shows_the_missing_credits_and_leads_to_the_reference(
    visitor: Visitor,
) -> None:
    visitor.ask("A hut", visitor.stack.open_account("empty", 3))
    line = visitor.status("bad")
    assert "3 of the 5" in line
    assert visitor.faults() == []
    assert "This request costs nothing" in line
    visitor.find("#status a").click()
    assert "balance is below the price" in visitor.find("tr:target").text


def test_a_wrong_key_shows_nothing_of_the_key_before(visitor: Visitor) -> None:
    visitor.ask("A hut", visitor.stack.open_account("former", 100))
    visitor.status("good")
    visitor.wait(lambda: visitor.find("#strip img").is_displayed())
    visitor.find("#key").send_keys("x")
    assert not visitor.find("#history").is_displayed()
    assert visitor.all("#strip li") == []
    visitor.find("#key").send_keys(Keys.TAB)
    visitor.wait(lambda: "not valid" in visitor.find("#balance").text)
    visitor.find("#go").click()
    assert "Invalid or missing API key" in visitor.status("bad")
    assert not visitor.find("#history").is_displayed()


@pytest.mark.parametrize(
    ("field", "sentence"), [("#key", "Paste an API key first."), ("#prompt", "Write a prompt")]
)
def test_without_a_key_or_a_prompt_no_request_is_sent_and_the_field_gets_focus(
    field: str, sentence: str, visitor: Visitor
) -> None:
    visitor.fill("A hut")
    visitor.find(field).clear()
    visitor.find("#go").click()
    assert sentence in visitor.status("bad")
    assert visitor.driver.switch_to.active_element == visitor.find(field)


def test_the_history_can_be_used_again_and_deleted(visitor: Visitor) -> None:
    key = visitor.stack.open_account("collector", 100)
    for prompt, ratio in (("First", "3:2"), ("Second", "1:1")):
        visitor.ask(prompt, key, ratio)
        visitor.status("good")
        visitor.wait(lambda: visitor.value("#prompt") in visitor.find("#strip li.settled").text)
    second, first = visitor.all("#strip li")
    for image in visitor.all("#strip img"):
        assert image.get_attribute("loading") == "lazy"
        assert image.size == {"width": 80, "height": 80}
    assert "5 credits · 3:2" in first.text

    first.find_element(By.XPATH, ".//button[.='Use this prompt again']").click()
    assert visitor.value("#prompt") == "First"
    assert visitor.find('input[value="3:2"]').is_selected()
    assert visitor.driver.switch_to.active_element == visitor.find("#prompt")

    url = second.find_element(By.CSS_SELECTOR, "a").get_attribute("href")
    assert url is not None
    assert fetch(url).status == 200
    delete = second.find_element(By.XPATH, ".//button[.='Delete']")
    delete.click()
    assert visitor.faults() == []
    visitor.find("#keep").click()
    assert visitor.driver.switch_to.active_element == delete
    delete.click()
    visitor.find("#delete").click()
    visitor.wait(lambda: "Deleted. The 5 credits stay charged" in second.text)
    assert fetch(url).status == 404
    assert visitor.find("#canvas").text == "This image was deleted."
    visitor.driver.refresh()
    visitor.wait(lambda: [each.text for each in visitor.all("#strip .said")] == ["First"])


def test_older_images_come_a_page_at_a_time(visitor: Visitor) -> None:
    each = {"id": "1", "status": "refunded", "prompt": "A hut", "aspectRatio": "1:1"} | _REFUND
    page = [each | {"createdAt": "2026-11-23T06:12:36.254Z"}] * 6
    path = "/api/v1/generations?limit=6"
    answers(
        visitor,
        {
            CREDITS: [(200, {}, _BALANCE)],
            path: [(200, {}, {"generations": page, "nextCursor": "abc"})],
            f"{path}&cursor=abc": [(200, {}, {"generations": page[:2], "nextCursor": None})],
        },
    )
    visitor.find("#key").send_keys(visitor.stack.api_key)
    visitor.wait(lambda: len(visitor.all("#strip li")) == 6)
    visitor.find("#older").click()
    visitor.wait(lambda: len(visitor.all("#strip li")) == 8)
    assert not visitor.find("#older").is_displayed()


def test_the_usage_of_the_month_is_shown_where_the_service_tells_it(visitor: Visitor) -> None:
    keys = [
        {"id": "key_1", "name": "shop", "credits": 40, "images": 8, "monthlyBudget": 100},
        {"id": "key_2", "name": None, "credits": 5, "images": 1, "monthlyBudget": None},
    ]
    month = {"month": "2026-11", "credits": 45, "images": 9, "keys": keys}
    answers(visitor, {CREDITS: [(200, {}, _BALANCE)], USAGE: [(200, {}, month)]})
    visitor.find("#key").send_keys(visitor.stack.api_key)
    visitor.wait(lambda: visitor.find("#usage").is_displayed())
    text = visitor.find("#usage").text
    assert "Usage in November 2026: 9 images, 45 credits" in text
    assert "shop 8 40 of 100 credits" in " ".join(text.split())
    assert "key_2 1 5" in " ".join(text.split())
    assert visitor.faults() == []


def test_the_key_is_kept_in_the_tab_only(visitor: Visitor) -> None:
    visitor.ask("A hut")
    visitor.status("good")
    visitor.driver.refresh()
    assert visitor.value("#key") == visitor.stack.api_key
    visitor.driver.switch_to.new_window("tab")
    visitor.driver.get(visitor.stack.url)
    assert visitor.value("#key") == ""
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


@pytest.mark.parametrize("modifier", [Keys.CONTROL, Keys.META], ids=["Ctrl", "Cmd"])
def test_enter_with_a_modifier_generates_and_keeps_the_focus(
    modifier: str, visitor: Visitor
) -> None:
    visitor.fill("A hut")
    visitor.find("#prompt").click()
    chain = webdriver.ActionChains(visitor.driver)
    chain.key_down(modifier).send_keys(Keys.ENTER).key_up(modifier).perform()
    visitor.status("good")
    assert visitor.driver.switch_to.active_element == visitor.find("#prompt")


def test_the_examples_are_the_request_of_the_form_without_the_key(visitor: Visitor) -> None:
    visitor.fill('It\'s a "quoted" hut', ratio="9:16")
    examples = {
        name: visitor.find(f'[data-example="{name}"]').get_attribute("textContent") or ""
        for name in ("curl", "python", "javascript", "openai")
    }
    for text in examples.values():
        assert visitor.stack.api_key not in text
        assert visitor.stack.url in text
        assert re.search(r"Idempotency-Key\W+[0-9a-f]{32}", text)
    assert r"It'\''s a \"quoted\" hut" in examples["curl"]
    assert '"aspectRatio":"9:16"' in examples["curl"]
    for language in ("python", "javascript", "openai"):
        assert r'"It' + r"'s a \"quoted\" hut" + '"' in examples[language]
    assert 'size="768x1376"' in examples["openai"]

    def shown() -> list[str]:
        return [
            each.get_attribute("id") or ""
            for each in visitor.all('[role="tabpanel"]')
            if each.is_displayed()
        ]

    assert shown() == ["panel-curl"]
    visitor.find("#tab-python").click()
    assert shown() == ["panel-python"]
    visitor.find("#tab-python").send_keys(Keys.ARROW_RIGHT)
    assert shown() == ["panel-javascript"]
    visitor.driver.set_permissions("clipboard-write", "granted")
    visitor.driver.set_permissions("clipboard-read", "granted")
    visitor.find("#examples .copy").click()
    visitor.wait(lambda: visitor.find("#examples .copy").text == "Copied")
    pasted = visitor.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0])"
    )
    assert pasted == examples["javascript"]


def test_without_script_every_example_and_error_can_be_read(
    browser: webdriver.Chrome, stack: LocalStack
) -> None:
    off = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(off, {"value": True})
    try:
        browser.get(stack.url)
        visitor = Visitor(browser, stack)
        for selector in ('[data-example="openai"]', '[data-example="curl"]', "#rate_limited"):
            assert visitor.find(selector).size["height"] > 0
        assert visitor.find("noscript p").text.startswith("The playground needs JavaScript")
        for selector in ("#form", "#tabs"):
            assert visitor.find(selector).size["height"] == 0
    finally:
        browser.execute_cdp_cmd(off, {"value": False})


def test_a_phone_gets_a_short_page_whose_parts_open(visitor: Visitor) -> None:
    visitor.emulate("a phone", "light")
    visitor.open()
    screens = visitor.driver.execute_script(
        "return document.documentElement.scrollHeight / innerHeight"
    )
    assert screens < 7
    assert visitor.faults() == []
    visitor.driver.get(f"{visitor.stack.url}/#rate_limited")
    visitor.wait(lambda: visitor.find("#rate_limited").is_displayed())
    row = visitor.find("#rate_limited")
    assert row.rect["width"] <= 390
    assert "Try again" in visitor.driver.execute_script(
        "return getComputedStyle(arguments[0], '::before').content",
        row.find_elements(By.CSS_SELECTOR, "td")[2],
    )
    for code in visitor.all("#outcomes th code"):
        assert code.size["height"] < 30, f"{code.text} is broken in two"


def test_forced_colours_show_the_chosen_ratio_and_the_button(visitor: Visitor) -> None:
    visitor.emulate("a desktop", "forced colours")

    def edge(selector: str, side: str) -> str:
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return str(visitor.driver.execute_script(script, selector, side))

    assert edge(".ratio:has(:checked)", "outlineStyle") == "solid"
    assert edge(".ratio:not(:has(:checked))", "outlineStyle") == "none"
    assert edge("#go", "borderTopStyle") == "solid"
    assert edge("#go", "borderTopColor") != edge("body", "backgroundColor")


def test_the_page_is_accessible_at_any_size_in_any_colours_before_and_after_a_picture(
    visitor: Visitor,
) -> None:
    def check() -> None:
        for size in SIZES:
            for look in LOOKS:
                visitor.emulate(size, look)
                assert visitor.faults() == [], f"{size}, {look}"
                width = "return document.documentElement.scrollWidth - window.innerWidth"
                sideways = visitor.driver.execute_script(width)
                assert sideways <= 0, f"{size}, {look}: the page scrolls sideways"

    check()
    for prompt, kind in (("A hut", "good"), ("A hut [fail:safety]", "bad")):
        visitor.ask(prompt)
        visitor.status(kind)
    visitor.wait(lambda: visitor.find("#strip .refunded").is_displayed())
    check()
