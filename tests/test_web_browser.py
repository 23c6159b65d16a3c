"""The page in a real browser: asked, stopped, edited, reloaded, fed with what must stay inert."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from nanochat.engine import Engine
from nanochat.web import http_server
from tests.learned_by_heart import EVIL, LONG, model_and_tokenizer
from tests.served import num_at_work, serving, slowed, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]
PATIENCE = 30_000  # milliseconds; machines are busy
CHAT = "**/v1/chat/completions"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(*model_and_tokenizer())


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, fresh; it may ask nobody but its server, and no script may fail."""
    expect.set_options(timeout=PATIENCE)
    context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Refused" in said.text else None)
    page.goto(address)
    yield page
    context.close()
    assert [url for url in foreign if not url.startswith((address, "data:"))] == []
    assert errors == []


def ask(page: Page, text: str) -> None:
    """Type a message and send it."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def expect_answer(page: Page, text: str | re.Pattern[str]) -> None:
    """The last answer is there, and done."""
    last = page.locator(".turn.assistant").last
    expect(last.locator(".body")).to_have_text(text)
    expect(page.locator("[aria-busy]")).to_have_count(0)


def test_an_answer_streams_and_its_tool_call_unfolds(page: Page, engine: Engine) -> None:
    with slowed(engine, 0.1):
        ask(page, "Count")
        expect(page.locator(".turn.assistant[aria-busy] .body")).to_contain_text("tick 10")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "What is 347 + 588?")
    tool = page.locator("details.tool").last
    expect(tool.locator("summary")).to_contain_text("347 + 588 = 935")
    expect(tool.locator("dl")).to_be_hidden()
    tool.locator("summary").click()
    expect(tool.locator("dd")).to_have_text(["347 + 588", "935"])
    expect(page.locator(".text").last).to_have_text("347 + 588 = 935.")
    expect(page.locator("#spoken")).to_have_text("347 + 588 = 935.")
    expect(page.locator("#model")).to_have_text("nanochat-d2-sft")
    expect(page.locator(".facts").last).to_have_text(re.compile(r"^\d+ tokens"))


def test_escape_stops_the_answer_here_and_on_the_server(
    page: Page, engine: Engine, address: str
) -> None:
    with slowed(engine, 0.2):
        ask(page, "Count")
        expect(page.locator(".turn.assistant .body")).to_contain_text("tick")
        page.keyboard.press("Escape")
        expect(page.locator(".note")).to_have_text("Stopped.")
        wait_until(lambda: num_at_work(address) == 0)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_another_answer_takes_the_place_of_the_last_which_can_be_had_back(page: Page) -> None:
    ask(page, "Who are you?")
    expect_answer(page, "I am nanochat.")
    page.get_by_role("button", name="Another answer").click()
    expect_answer(page, re.compile(".+"))
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".versions")).to_have_text("2/2")
    page.get_by_role("button", name="Earlier version").click()
    expect_answer(page, "I am nanochat.")
    expect(page.get_by_role("button", name="Earlier version")).to_be_disabled()


def test_a_message_is_edited_and_the_conversation_goes_on_from_there(page: Page) -> None:
    for text in ("Who are you?", "Smile"):
        ask(page, text)
        expect_answer(page, re.compile(".+"))
    page.locator(".turn.user").first.hover()
    page.get_by_role("button", name="Edit message").first.click()
    field = page.get_by_label("Edit your message")
    expect(field).to_be_focused()
    field.fill("Smile")
    field.press("Enter")
    expect_answer(page, "😀 é 汉字")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#list .open")).to_have_text(["Smile"])
    page.reload()
    page.locator(".turn.user").hover()
    page.get_by_role("button", name="Earlier version").click()  # with all that has followed it
    expect(page.locator(".said")).to_have_text(["Who are you?", "Smile"])


def test_conversations_are_kept_over_a_reload_switched_and_deleted(page: Page) -> None:
    ask(page, "My name is Ann.")
    expect_answer(page, "Hello Ann.")
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "Smile")
    expect_answer(page, "😀 é 汉字")
    page.reload()
    expect(page.locator("#list .open")).to_have_text(["Smile", "My name is Ann."])
    expect_answer(page, "😀 é 汉字")
    page.get_by_role("button", name="My name is Ann.", exact=True).click()
    ask(page, "What is my name?")
    expect_answer(page, "You are Ann.")
    page.get_by_role("button", name="Delete Smile").click()
    expect(page.locator("#list .open")).to_have_text(["My name is Ann."])
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#list .open")).to_have_count(2)


def test_a_conversation_gets_another_name(page: Page) -> None:
    ask(page, "Smile")
    expect_answer(page, "😀 é 汉字")
    for name, key, shown in (
        ("Faces <b>", "Enter", "Faces <b>"),
        ("other", "Escape", "Faces <b>"),
        ("", "Enter", "Smile"),
    ):
        page.locator("#list li").hover()
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Name of the conversation").fill(name)
        page.keyboard.press(key)
        page.reload()
        expect(page.locator("#list .open")).to_have_text([shown])
        expect(page).to_have_title(f"{shown} · nanochat")


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page, engine: Engine) -> None:
    with slowed(engine, 0.1):
        ask(page, "Count")
        expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        page.get_by_role("button", name="New conversation").first.click()
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
        ask(page, "Smile")
        expect_answer(page, "😀 é 汉字")
    page.go_back()
    page.go_back()
    expect_answer(page, LONG)
    expect(page.locator(".note")).to_have_count(0)
    expect(page.locator("#list .pulse")).to_have_count(0)


def test_two_tabs_keep_what_each_other_has_asked(page: Page, address: str) -> None:
    other = page.context.new_page()
    other.goto(address)
    ask(page, "Smile")
    expect_answer(page, "😀 é 汉字")
    ask(other, "Who are you?")
    expect_answer(other, "I am nanochat.")
    ask(page, "Smile")
    expect(page.locator(".turn")).to_have_count(4)
    for tab in (page, other):
        expect(tab.locator("#list .open")).to_have_text(["Smile", "Who are you?"])
        expect(tab.locator(".said").first).to_be_visible()
    expect(page.locator("[aria-busy]")).to_have_count(0)
    page.reload()
    expect(page.locator("#list .open")).to_have_text(["Smile", "Who are you?"])


def test_what_has_come_stays_in_place_while_the_rest_comes(page: Page, engine: Engine) -> None:
    """So that it can be read and selected; nobody who has scrolled up is carried along."""
    page.set_viewport_size({"width": 1200, "height": 420})
    for _ in range(2):
        ask(page, "Who are you?")
        expect_answer(page, "I am nanochat.")
    box = page.locator("#scroll")
    with slowed(engine, 0.1):
        ask(page, "Markdown")
        bold = page.locator(".turn[aria-busy] .text strong")
        expect(bold).to_have_text("bold")
        bold.evaluate("node => { window.first = node; }")
        assert box.evaluate("b => b.scrollHeight - b.scrollTop - b.clientHeight") < 4
        box.hover()
        page.mouse.wheel(0, -80)
        page.wait_for_function(  # the wheel takes its time
            "b => b.scrollHeight - b.scrollTop - b.clientHeight > 70", arg=box.element_handle()
        )
        top = box.evaluate("b => b.scrollTop")
        expect(page.locator(".code pre .n")).to_have_text("x")
        expect(page.locator("[aria-busy]")).to_have_count(0)
        assert box.evaluate("b => b.scrollTop") == top
    assert bold.count() == 0 and page.evaluate("window.first.isConnected")
    page.get_by_role("button", name="Go to the latest").click()
    expect(page.get_by_role("button", name="Go to the latest")).to_be_hidden()


def test_markup_of_user_and_model_stays_inert(page: Page) -> None:
    attack = f"Evil {EVIL}"
    ask(page, "Evil")
    expect_answer(page, EVIL)
    ask(page, attack)
    expect(page.locator(".turn.user .said").last).to_have_text(attack)
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.locator("#log img, #log script, #list img").count() == 0
    page.reload()
    expect(page.locator(".turn.user .said").last).to_have_text(attack)
    assert page.evaluate("window.hacked") is None


def test_markdown_is_set_and_code_is_coloured_and_copied(page: Page) -> None:
    ask(page, "Markdown")
    expect(page.locator(".text strong")).to_have_text("bold")
    expect(page.locator(".code header")).to_contain_text("python")
    expect(page.locator(".code pre .n")).to_have_text("x")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1\n"


def test_light_and_dark_and_the_choice_is_kept(page: Page) -> None:
    light, dark = "rgb(251, 250, 247)", "rgb(25, 25, 24)"
    ground = page.locator("body")
    expect(ground).to_have_css("background-color", light)
    page.emulate_media(color_scheme="dark")
    expect(ground).to_have_css("background-color", dark)
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(ground).to_have_css("background-color", light)
    page.reload()
    expect(ground).to_have_css("background-color", light)


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 750})
    ask(page, "Markdown " + "wide" * 40)
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    expect(page.locator("#new")).not_to_be_in_viewport()
    page.locator("#menu").click()
    expect(page.locator("#new")).to_be_in_viewport()
    expect(page.locator("#new")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#menu")).to_be_focused()
    page.locator("#menu").click()
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_a_contrast(page: Page, scheme: str) -> None:
    """WCAG 2.2: 4.1.2, and 4.5 : 1 of 1.4.3; on the welcome, a conversation and the settings."""
    page.emulate_media(
        color_scheme="light" if scheme == "light" else "dark", reduced_motion="reduce"
    )
    assert_readable(page.locator("body"))
    ask(page, "Markdown")
    expect(page.locator(".code pre .n")).to_have_text("x")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    ask(page, "What is 347 + 588?")
    expect_answer(page, re.compile("is 935|= 935"))
    page.locator("details.tool summary").click()
    page.route(CHAT, lambda route: route.abort("connectionrefused"))
    ask(page, "Smile")
    expect(page.locator(".note.alarm")).to_be_visible()
    assert page.locator("h1").count() == 1
    assert_readable(page.locator("body"))
    page.get_by_role("button", name="Settings").click()
    assert_readable(page.locator("#settings"))


def assert_readable(place: Locator) -> None:
    """Names of the controls that have none, and texts that stand out too little: there are none."""
    found = place.evaluate(
        """place => {
          // Read on the CPU, and each colour once: no page has to wait for a GPU process.
          const options = { willReadFrequently: true }, known = {}, found = [];
          const canvas = new OffscreenCanvas(1, 1).getContext("2d", options);
          const read = (colour) => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
          };
          const rgba = (colour) => (known[colour] ??= read(colour));
          const ground = (node) => {
            for (; node; node = node.parentElement) {
              const colour = rgba(getComputedStyle(node).backgroundColor);
              if (colour[3] === 255) return colour;
            }
          };
          const luminance = (colour) => colour.slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
          const check = (node, colour, text) => {
            const pair = [luminance(rgba(colour)), luminance(ground(node))].sort((a, b) => b - a);
            const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
            if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${node.tagName} ${text}`);
          };
          for (const node of place.querySelectorAll("*")) {
            if (!node.checkVisibility({ checkVisibilityCSS: true })) continue;
            const text = [...node.childNodes].map((one) => one.nodeType === 3 && one.data.trim());
            if (text.some(Boolean)) check(node, getComputedStyle(node).color, text);
            const hint = node.placeholder;
            if (hint) check(node, getComputedStyle(node, "::placeholder").color, hint);
            const name = node.ariaLabel || node.labels?.[0]?.innerText || node.innerText;
            if (node.matches("button, input, textarea, select, summary, a") && !name?.trim()) {
              found.push(`no name: ${node.outerHTML}`);
            }
          }
          return found;
        }"""
    )
    assert found == []


def test_keys_begin_a_line_and_bring_the_last_message_back(page: Page) -> None:
    field = page.get_by_label("Your message")
    field.fill("My name")
    field.press("Shift+Enter")
    field.press_sequentially("is Ann.")
    expect(field).to_have_value("My name\nis Ann.")
    field.press("Enter")
    expect(page.locator(".said")).to_have_text("My name\nis Ann.")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    field.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_have_value("My name\nis Ann.")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Edit your message")).to_have_count(0)


def test_settings_go_into_the_request(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("System text").fill("Be brief.")
    page.get_by_role("button", name="Done").click()
    with page.expect_request(CHAT) as caught:
        ask(page, "Count")
    body = json.loads(caught.value.post_data or "")
    assert body["seed"] == 7 and body["max_tokens"] == 3
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    expect(page.locator(".note")).to_contain_text("The answer was cut")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".facts").last).to_have_text(re.compile("^3 tokens"))


def test_a_server_that_is_busy_gone_or_breaks_off_is_told_to_the_user(page: Page) -> None:
    refusals = ["busy"]

    def busy_once(route: Route) -> None:
        if refusals:
            refusals.pop()
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": {}})
        else:
            route.continue_()

    page.route(CHAT, busy_once)
    ask(page, "Smile")
    expect(page.locator(".note")).to_contain_text("The server is busy")
    expect_answer(page, "😀 é 汉字")
    page.unroute(CHAT)

    page.route(CHAT, lambda route: route.abort("connectionrefused"))
    ask(page, "Smile")
    expect(page.locator(".note.alarm")).to_contain_text("cannot be reached")
    page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".note.alarm")).to_have_count(0)
    expect(page.locator("[aria-busy]")).to_have_count(0)

    chunk = {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]}
    half = f"data: {json.dumps(chunk)}\n\n"
    page.route(CHAT, lambda r: r.fulfill(content_type="text/event-stream", body=half))
    ask(page, "Smile")
    expect(page.locator(".note.alarm")).to_contain_text("broke off in the middle")
    expect(page.locator(".text").last).to_have_text("Half")


def test_a_server_that_restarts_in_mid_answer_is_told_to_the_user_and_found_again(
    browser: Browser, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GRACEFUL_SHUTDOWN_SECONDS", 0)
    page = browser.new_context().new_page()
    with slowed(engine, 0.1):
        with serving(engine) as address:
            page.goto(address)
            ask(page, "Count")
            expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        expect(page.locator(".note.alarm")).to_contain_text("The server is shutting down.")
        expect(page.locator(".body")).to_contain_text("tick 10")
        expect(page.locator("#model")).to_have_text("not connected")
    with serving(engine, port=int(address.rpartition(":")[2])):
        expect(page.locator("#model")).to_have_text("nanochat-d2-sft")
        page.get_by_role("button", name="Try again").click()
        expect_answer(page, LONG)
        expect(page.locator(".note")).to_have_count(0)
        page.context.close()


def test_a_server_whose_places_are_taken_is_waited_for_as_long_as_one_likes(
    browser: Browser, engine: Engine
) -> None:
    with serving(engine, num_slots=1, max_waiting=0) as address, slowed(engine, 0.1):
        first, second = (browser.new_context().new_page() for _ in range(2))
        for page in (first, second):
            page.goto(address)
            ask(page, "Count")
        expect(second.locator(".note")).to_contain_text("waiting for a free place")
        second.get_by_role("button", name="Stop").click()
        expect(second.locator(".note")).to_have_text("Stopped.")
        second.get_by_role("button", name="Another answer").click()
        expect(second.locator(".note")).to_contain_text("waiting for a free place")
        first.get_by_role("button", name="Stop").click()
        expect(second.locator(".body")).to_contain_text("tick 10")
        for page in (first, second):
            page.context.close()


def test_an_answer_during_which_the_page_was_left_is_kept_as_far_as_it_came(
    page: Page, engine: Engine
) -> None:
    with slowed(engine, 0.1):
        ask(page, "Count")
        expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        page.reload()
    expect(page.locator(".body")).to_contain_text("tick 10")
    expect(page.locator(".note")).to_have_text("Stopped.")
