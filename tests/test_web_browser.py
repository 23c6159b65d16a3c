"""The chat page in a real browser: streaming, stopping, editing, reloading, hostile markup."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from nanochat.engine import Engine
from nanochat.web import http_server
from tests.memorized_model import EVIL, LONG, model_and_tokenizer
from tests.served import num_at_work, paused, serving, slowed, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TIMEOUT_MS = 30_000  # generous: test machines are busy
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
    """The page in a fresh profile. It may contact only its server, and no script may fail."""
    expect.set_options(timeout=TIMEOUT_MS)
    context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    requested: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if "Refused" in line.text else None)
    page.goto(address)
    yield page
    context.close()
    assert [url for url in requested if not url.startswith((address, "data:"))] == []
    assert errors == []


def ask(page: Page, text: str) -> None:
    """Type a message and send it."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def expect_response(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until the last response is complete, and compare its text."""
    last = page.locator(".turn.assistant").last
    expect(last.locator(".body")).to_have_text(text)
    expect(page.locator("[aria-busy]")).to_have_count(0)


def test_a_response_streams_and_its_tool_call_expands(page: Page, engine: Engine) -> None:
    with paused(engine, after=20):
        ask(page, "Count")
        expect(page.locator(".turn.assistant[aria-busy] .body")).to_contain_text("tick 10")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").first.click()
    with slowed(engine, 0.02):
        ask(page, "What is 347 + 588?")
        tool = page.locator("details.tool").last
        expect(tool.locator("summary")).to_contain_text("347 + 588 = 935")
        expect(page.locator(".stats").last).to_have_text(re.compile(r"^\d+ tokens · \d+ tokens/s$"))
    expect(tool.locator("dl")).to_be_hidden()
    tool.locator("summary").click()
    expect(tool.locator("dd")).to_have_text(["347 + 588", "935"])
    expect(page.locator(".text").last).to_have_text("347 + 588 = 935.")
    expect(page.locator("#announcer")).to_have_text("347 + 588 = 935.")
    expect(page.locator("#model")).to_have_text("nanochat-d2-sft")


def test_escape_stops_the_response_on_the_page_and_on_the_server(
    page: Page, engine: Engine, address: str
) -> None:
    with paused(engine, after=20):
        ask(page, "Count")
        expect(page.locator(".turn.assistant .body")).to_contain_text("tick")
        page.keyboard.press("Escape")
        expect(page.locator(".notice")).to_have_text("Stopped.")
    wait_until(lambda: num_at_work(address) == 0)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_a_regenerated_response_replaces_the_last_one_which_stays_available(page: Page) -> None:
    ask(page, "Who are you?")
    expect_response(page, "I am nanochat.")
    page.get_by_role("button", name="Regenerate").click()
    expect_response(page, re.compile(".+"))
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".versions")).to_have_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect_response(page, "I am nanochat.")
    expect(page.get_by_role("button", name="Previous version")).to_be_disabled()


def test_editing_a_message_branches_the_conversation(page: Page) -> None:
    for text in ("Who are you?", "Smile"):
        ask(page, text)
        expect_response(page, re.compile(".+"))
    page.locator(".turn.user").first.hover()
    page.get_by_role("button", name="Edit message").first.click()
    field = page.get_by_label("Edit your message")
    expect(field).to_be_focused()
    field.fill("Smile")
    field.press("Enter")
    expect_response(page, "😀 é 汉字")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#list .open")).to_have_text(["Smile"])
    page.reload()
    page.locator(".turn.user").hover()
    page.get_by_role("button", name="Previous version").click()  # with its continuation
    expect(page.locator(".bubble")).to_have_text(["Who are you?", "Smile"])


def test_conversations_survive_a_reload_and_are_switched_and_deleted(page: Page) -> None:
    ask(page, "My name is Ann.")
    expect_response(page, "Hello Ann.")
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    page.reload()
    expect(page.locator("#list .open")).to_have_text(["Smile", "My name is Ann."])
    expect_response(page, "😀 é 汉字")
    page.get_by_role("button", name="My name is Ann.", exact=True).click()
    ask(page, "What is my name?")
    expect_response(page, "You are Ann.")
    page.get_by_role("button", name="Delete Smile").click()
    expect(page.locator("#list .open")).to_have_text(["My name is Ann."])
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#list .open")).to_have_count(2)


def test_a_conversation_is_renamed(page: Page) -> None:
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    for name, key, shown in (
        ("Faces <b>", "Enter", "Faces <b>"),
        ("other", "Escape", "Faces <b>"),
        ("", "Enter", "Smile"),
    ):
        page.locator("#list li").hover()
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Conversation name").fill(name)
        page.keyboard.press(key)
        page.reload()
        expect(page.locator("#list .open")).to_have_text([shown])
        expect(page).to_have_title(f"{shown} · nanochat")


def test_a_response_continues_while_another_conversation_is_shown(
    page: Page, engine: Engine
) -> None:
    with paused(engine, after=20):
        ask(page, "Count")
        expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        page.get_by_role("button", name="New conversation").first.click()
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    page.go_back()
    page.go_back()
    expect_response(page, LONG)
    expect(page.locator(".notice")).to_have_count(0)
    expect(page.locator("#list .pulse")).to_have_count(0)


def test_two_tabs_do_not_overwrite_each_others_conversations(page: Page, address: str) -> None:
    other = page.context.new_page()
    other.goto(address)
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    ask(other, "Who are you?")
    expect_response(other, "I am nanochat.")
    ask(page, "Smile")
    expect(page.locator(".turn")).to_have_count(4)
    for tab in (page, other):
        expect(tab.locator("#list .open")).to_have_text(["Smile", "Who are you?"])
        expect(tab.locator(".bubble").first).to_be_visible()
    expect(page.locator("[aria-busy]")).to_have_count(0)
    page.reload()
    expect(page.locator("#list .open")).to_have_text(["Smile", "Who are you?"])


def test_rendered_text_stays_in_place_while_more_streams(page: Page, engine: Engine) -> None:
    """It can be read and selected, and a user who has scrolled up is not scrolled down."""
    page.set_viewport_size({"width": 1200, "height": 420})
    for _ in range(2):
        ask(page, "Who are you?")
        expect_response(page, "I am nanochat.")
    box = page.locator("#scroller")
    with slowed(engine, 0.1):
        ask(page, "Markdown")
        bold = page.locator(".turn[aria-busy] .text strong")
        expect(bold).to_have_text("bold")
        bold.evaluate("node => { window.first = node; }")
        assert box.evaluate("b => b.scrollHeight - b.scrollTop - b.clientHeight") < 4
        box.hover()
        page.mouse.wheel(0, -80)
        page.wait_for_function(  # the wheel scrolls smoothly
            "b => b.scrollHeight - b.scrollTop - b.clientHeight > 70", arg=box.element_handle()
        )
        top = box.evaluate("b => b.scrollTop")
        expect(page.locator(".code pre .n")).to_have_text("x")
        expect(page.locator("[aria-busy]")).to_have_count(0)
        assert box.evaluate("b => b.scrollTop") == top
    assert bold.count() == 0 and page.evaluate("window.first.isConnected")
    page.get_by_role("button", name="Jump to the latest").click()
    expect(page.get_by_role("button", name="Jump to the latest")).to_be_hidden()


def test_markup_of_the_user_and_the_model_is_inert(page: Page) -> None:
    attack = f"Evil {EVIL}"
    ask(page, "Evil")
    expect_response(page, EVIL)
    ask(page, attack)
    expect(page.locator(".turn.user .bubble").last).to_have_text(attack)
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.locator("#log img, #log script, #list img").count() == 0
    page.reload()
    expect(page.locator(".turn.user .bubble").last).to_have_text(attack)
    assert page.evaluate("window.hacked") is None


def test_markdown_is_rendered_and_code_is_highlighted_and_copied(page: Page) -> None:
    ask(page, "Markdown")
    expect(page.locator(".text strong")).to_have_text("bold")
    expect(page.locator(".code header")).to_contain_text("python")
    expect(page.locator(".code pre .n")).to_have_text("x")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    expect(page.locator(".code pre")).to_have_text("x = 1")  # rendered after the last token
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1\n"


def test_the_theme_follows_the_system_until_the_user_chooses(page: Page) -> None:
    light, dark = "rgb(251, 250, 247)", "rgb(25, 25, 24)"
    body = page.locator("body")
    expect(body).to_have_css("background-color", light)
    page.emulate_media(color_scheme="dark")
    expect(body).to_have_css("background-color", dark)
    page.get_by_role("button", name="Switch between light and dark mode").click()
    expect(body).to_have_css("background-color", light)
    page.reload()
    expect(body).to_have_css("background-color", light)


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 750})
    ask(page, "Markdown " + "wide" * 40)
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    expect(page.locator("#new-conversation")).not_to_be_in_viewport()
    page.locator("#menu").click()
    expect(page.locator("#new-conversation")).to_be_in_viewport()
    expect(page.locator("#new-conversation")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#menu")).to_be_focused()
    page.locator("#menu").click()
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_enough_contrast(page: Page, scheme: str) -> None:
    """WCAG 2.2, 4.1.2 and 1.4.3 (4.5 : 1): welcome screen, conversation, both dialogs."""
    page.emulate_media(
        color_scheme="light" if scheme == "light" else "dark", reduced_motion="reduce"
    )
    assert_readable(page.locator("body"))
    ask(page, "Markdown")
    expect(page.locator(".code pre .n")).to_have_text("x")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    ask(page, "What is 347 + 588?")
    expect_response(page, re.compile("is 935|= 935"))
    page.locator("details.tool summary").click()
    page.route(CHAT, lambda route: route.abort("connectionrefused"))
    ask(page, "Smile")
    expect(page.locator(".notice.error")).to_be_visible()
    assert page.locator("h1").count() == 1
    assert_readable(page.locator("body"))
    page.get_by_role("button", name="Settings").click()
    assert_readable(page.locator("#settings"))


def assert_readable(place: Locator) -> None:
    """No control lacks an accessible name, and no text lacks contrast."""
    found = place.evaluate(
        """place => {
          // On the CPU and cached: reading a canvas back from the GPU process is slow.
          const options = { willReadFrequently: true }, known = {}, found = [];
          const canvas = new OffscreenCanvas(1, 1).getContext("2d", options);
          const read = (color) => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
          };
          const rgba = (color) => (known[color] ??= read(color));
          const ground = (node) => {
            for (; node; node = node.parentElement) {
              const color = rgba(getComputedStyle(node).backgroundColor);
              if (color[3] === 255) return color;
            }
          };
          const luminance = (color) => color.slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
          const check = (node, color, text) => {
            const pair = [luminance(rgba(color)), luminance(ground(node))].sort((a, b) => b - a);
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


def test_shift_enter_breaks_the_line_and_arrow_up_edits_the_last_message(page: Page) -> None:
    field = page.get_by_label("Your message")
    field.fill("My name")
    field.press("Shift+Enter")
    field.press_sequentially("is Ann.")
    expect(field).to_have_value("My name\nis Ann.")
    field.press("Enter")
    expect(page.locator(".bubble")).to_have_text("My name\nis Ann.")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    field.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_have_value("My name\nis Ann.")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Edit your message")).to_have_count(0)


def test_settings_are_sent_with_the_request(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Max. response length").fill("3")
    page.locator("#settings").get_by_label("System prompt").fill("Be brief.")
    page.get_by_role("button", name="Done").click()
    with page.expect_request(CHAT) as caught:
        ask(page, "Count")
    body = json.loads(caught.value.post_data or "")
    assert body["seed"] == 7 and body["max_tokens"] == 3
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    expect(page.locator(".notice")).to_contain_text("Response cut off at the length limit.")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".stats").last).to_have_text(re.compile("^3 tokens"))


def test_the_user_is_told_when_the_server_is_busy_unreachable_or_disconnects(page: Page) -> None:
    refusals = ["busy"]

    def busy_once(route: Route) -> None:
        if refusals:
            refusals.pop()
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": {}})
        else:
            route.continue_()

    page.route(CHAT, busy_once)
    ask(page, "Smile")
    expect(page.locator(".notice")).to_contain_text("Server busy, waiting in line…")
    expect_response(page, "😀 é 汉字")
    page.unroute(CHAT)

    page.route(CHAT, lambda route: route.abort("connectionrefused"))
    ask(page, "Smile")
    expect(page.locator(".notice.error")).to_contain_text("cannot be reached")
    page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".notice.error")).to_have_count(0)
    expect(page.locator("[aria-busy]")).to_have_count(0)

    chunk = {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]}
    half = f"data: {json.dumps(chunk)}\n\n"
    page.route(CHAT, lambda r: r.fulfill(content_type="text/event-stream", body=half))
    ask(page, "Smile")
    expect(page.locator(".notice.error")).to_contain_text("Connection lost while answering.")
    expect(page.locator(".text").last).to_have_text("Half")


def test_the_page_reconnects_to_a_server_that_restarts_during_a_response(
    browser: Browser, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GRACEFUL_SHUTDOWN_SECONDS", 0)
    page = browser.new_context().new_page()
    with slowed(engine, 0.3):
        with serving(engine) as address:
            page.goto(address)
            ask(page, "Count")
            expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        expect(page.locator(".notice.error")).to_contain_text("The server is shutting down.")
        expect(page.locator(".body")).to_contain_text("tick 10")
        expect(page.locator("#model")).to_have_text("Disconnected, retrying…")
    with serving(engine, port=int(address.rpartition(":")[2])):
        expect(page.locator("#model")).to_have_text("nanochat-d2-sft")
        page.get_by_role("button", name="Try again").click()
        expect_response(page, LONG)
        expect(page.locator(".notice")).to_have_count(0)
        page.context.close()


def test_waiting_for_a_full_server_can_be_stopped_and_repeated(
    browser: Browser, engine: Engine
) -> None:
    with (
        serving(engine, num_slots=1, max_waiting=0) as address,
        paused(engine, after=20) as released,
    ):
        first, second = (browser.new_context().new_page() for _ in range(2))
        for page in (first, second):
            page.goto(address)
            ask(page, "Count")
        expect(second.locator(".notice")).to_contain_text("waiting in line")
        second.get_by_role("button", name="Stop").click()
        expect(second.locator(".notice")).to_have_text("Stopped.")
        second.get_by_role("button", name="Regenerate").click()
        expect(second.locator(".notice")).to_contain_text("waiting in line")
        first.get_by_role("button", name="Stop").click()
        released.set()
        expect(second.locator(".body")).to_contain_text("tick 10")
        for page in (first, second):
            page.context.close()


def test_leaving_the_page_keeps_the_part_of_a_response_that_has_arrived(
    page: Page, engine: Engine
) -> None:
    with paused(engine, after=20):
        ask(page, "Count")
        expect(page.locator(".turn[aria-busy] .body")).to_contain_text("tick 10")
        page.reload()
    expect(page.locator(".body")).to_contain_text("tick 10")
    expect(page.locator(".notice")).to_have_text("Stopped.")


# Stores a conversation of 2,000 characters, and fills what is left of the storage.
FILL_STORAGE = """() => {
  const parts = [{ type: "text", text: "Old " + "x".repeat(2000) }];
  const nodes = [{ role: "user", parts, parent: -1 }];
  const conversation = { id: "1", name: "", nodes, leaf: 0, updated: 1 };
  localStorage["nanochat.conversation.1"] = JSON.stringify(conversation);
  for (let size = 4_194_304; size >= 1; size /= 2) {
    const filler = (localStorage.filler ?? "") + "x".repeat(size);
    try { localStorage.filler = filler; } catch { /* half of it may fit */ }
  }
}"""


@pytest.mark.parametrize("choice", ["Delete and save", "Don’t save", "Escape"])
def test_a_full_browser_storage_asks_before_the_oldest_conversation_is_deleted(
    page: Page, choice: str
) -> None:
    page.evaluate(FILL_STORAGE)
    page.reload()
    ask(page, "Smile")
    dialog = page.get_by_role("dialog", name="Browser storage full")
    expect(dialog).to_contain_text("Delete the oldest conversation, “Old xxx")
    assert_readable(page.locator("#storage-full"))
    assert dialog.evaluate("box => box.scrollWidth <= box.clientWidth")  # a long title wraps
    assert page.evaluate('"nanochat.conversation.1" in localStorage')  # nothing is deleted yet
    if choice == "Escape":
        page.keyboard.press("Escape")
    else:
        dialog.get_by_role("button", name=choice).click()
    expect_response(page, "😀 é 汉字")
    is_deleted = choice == "Delete and save"
    toast = "oldest conversation was deleted" if is_deleted else "this conversation is not saved"
    expect(page.locator("#toast")).to_contain_text(toast)
    expect(dialog).to_be_hidden()
    page.reload()
    titles = page.locator("#list .open")
    expect(titles).to_have_text(["Smile"] if is_deleted else [re.compile("^Old xxx")])


def test_a_browser_without_storage_warns_and_chats_anyway(page: Page) -> None:
    page.add_init_script("delete window.localStorage")
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw Error(); } })"
    )
    page.reload()
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    expect(page.locator("#toast")).to_contain_text("This browser cannot save data")


@pytest.mark.parametrize(
    ("dropped", "notice"), [(1, "The oldest message no longer fits"), (2, "The oldest 2 messages")]
)
def test_left_out_messages_are_counted_in_the_singular_and_the_plural(
    page: Page, dropped: int, notice: str
) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    last = {"choices": [], "usage": {"completion_tokens": 1}, "dropped_messages": dropped}
    body = f"data: {json.dumps(chunk)}\n\ndata: {json.dumps(last)}\n\ndata: [DONE]\n\n"
    page.route(CHAT, lambda r: r.fulfill(content_type="text/event-stream", body=body))
    ask(page, "Smile")
    expect(page.locator(".notice")).to_contain_text(notice)
    expect(page.locator(".stats")).to_have_text("1 token")
