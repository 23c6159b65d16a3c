"""Features of the chat page in a real browser: content, tabs, long text, models, files."""

# Fixtures are imported for pytest, and are arguments of the same names.
# ruff: noqa: F401, F811

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Route, expect

from nanochat.engine import Engine
from nanochat.web.models import ModelSource
from tests.memorized_model import LONG
from tests.served import serving, serving_models, slowed
from tests.test_web_browser import (
    CHAT,
    address,
    ask,
    browser,
    engine,
    expect_response,
    page,
    pytestmark,
)

MARKDOWN = "**/page/markdown"
TEXT = """\
| name | colour | number |
|:-----|:------:|-------:|
| fox | orange | 1 |
| a very long cell that goes on and on to see whether the table scrolls on a phone | grey | 333 |

Inline $a^2 + b_1*c_2*$ and \\(x = y\\), https://a.example/b_(c).

$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$

- [ ] open
- [x] done

* مرحبا
* www.b.example, not.a.link.

مرحبا! هذا جواب.
"""


def stream_of(text: str, **last: Any) -> str:
    """The body of a stream with one piece of text."""
    choices = [
        {"index": 0, "delta": {"content": text}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    events = [{"choices": [choice]} for choice in choices]
    used = {"choices": [], "usage": {"completion_tokens": 9, "total_tokens": 480}, **last}
    return "".join(f"data: {json.dumps(one)}\n\n" for one in [*events, used]) + "data: [DONE]\n\n"


def answer_with(page: Page, text: str, **last: Any) -> None:
    """Let the server answer with a text from now on."""
    body = stream_of(text, **last)
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))


# ---- content


def test_tables_links_tasks_and_formulas_are_shown_as_they_are_meant(page: Page) -> None:
    answer_with(page, TEXT)
    ask(page, "מה השעה?")
    table = page.locator(".text table")
    expect(table).to_be_visible()
    aligned = [
        table.locator("td").nth(n).evaluate("x => getComputedStyle(x).textAlign") for n in range(3)
    ]
    assert [name.removeprefix("-webkit-") for name in aligned] == ["left", "center", "right"]
    formulas = page.locator(".formula")
    expect(formulas).to_have_text(
        ["$a^2 + b_1*c_2*$", "\\(x = y\\)", "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$"]
    )
    links = page.locator(".text a")
    expect(links).to_have_text(["https://a.example/b_(c)", "www.b.example"])
    expect(links.first).to_have_attribute("href", "https://a.example/b_(c)")
    expect(links.last).to_have_attribute("href", "http://www.b.example")
    expect(page.locator(".text .task")).to_have_text(["☐ open", "☑ done"])
    last = page.locator(".text > p").last
    for element in (last, page.locator(".bubble"), page.locator(".text ul").last):
        assert element.evaluate("x => getComputedStyle(x).direction") == "rtl"
    page.set_viewport_size({"width": 390, "height": 800})
    lines = table.locator("td").first.evaluate(
        "x => [...x.textContent].length && x.getClientRects()[0].height"
    )
    assert lines < 60  # "fox" is one line, not three letters below each other
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_text_streams_as_plain_text_while_markdown_is_pending(page: Page, engine: Engine) -> None:
    held: list[Route] = []
    page.route(MARKDOWN, lambda route: held.append(route))
    with slowed(engine, 0.05):
        ask(page, "Count")
        expect(page.locator(".text")).to_contain_text("tick 10 tock 10")
        page.wait_for_timeout(200)
        while not held:
            page.wait_for_timeout(20)
        held.pop().continue_()  # the first part is rendered, the next one is pending
        expect(page.locator(".text p")).to_contain_text("tick 10")
        expect(page.locator(".text p .tail")).to_contain_text("tock 12")
    # Not unrouted: the browser then continues those that are held by itself.
    page.route(MARKDOWN, lambda route: route.continue_())
    while held:
        held.pop().continue_()
    expect(page.locator("[aria-busy]")).to_have_count(0)
    expect(page.locator(".tail")).to_have_count(0)


def test_speed_and_context_are_those_that_the_server_reports(page: Page) -> None:
    answer_with(page, "Hi", timings={"first_token_ms": 5, "tokens_per_second": 123.4})
    ask(page, "Smile")
    expect(page.locator(".stats")).to_have_text("9 tokens · 123 tokens/s")
    expect(page.locator("#context")).to_have_text("480 of 512 tokens")
    expect(page.locator("#context")).to_have_class("full")
    page.reload()
    expect(page.locator("#context")).to_have_text("480 of 512 tokens")


# ---- input


def test_enter_that_ends_a_word_of_an_input_method_does_not_send(page: Page) -> None:
    field = page.get_by_label("Your message")
    field.fill("にほん")
    press = """(field, init) => field.dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...init }))"""
    for init in ({"isComposing": True}, {"keyCode": 229}):  # Chromium and Firefox; Safari
        field.evaluate(press, init)
        expect(field).to_have_value("にほん")
    field.evaluate(press, {"keyCode": 13})
    expect(page.locator(".bubble")).to_have_text("にほん")


@pytest.mark.parametrize("size", [3_000, 300_000])
def test_a_message_that_is_too_long_is_given_back(page: Page, size: int) -> None:
    ask(page, "Smile")
    expect_response(page, "😀 é 汉字")
    text = ("word " * (size // 5)).strip()
    for is_new in (False, True):
        if is_new:
            page.get_by_role("button", name="New conversation").first.click()
        ask(page, text)
        expect(page.locator("#toast")).to_contain_text("context" if size < 9_999 else "too long")
        expect(page.get_by_label("Your message")).to_have_value(text)
        expect(page.locator(".turn")).to_have_count(0 if is_new else 2)
        expect(page.locator("#list .open")).to_have_text(["Smile"])
        page.get_by_label("Your message").fill("")
    page.get_by_role("button", name="Smile", exact=True).click()
    ask(page, "Who are you?")
    expect_response(page, re.compile(".+"))
    expect(page.locator(".turn")).to_have_count(4)


# ---- tabs and files


def test_one_conversation_in_two_tabs_keeps_the_messages_of_both(
    page: Page,
    engine: Engine,
) -> None:
    with slowed(engine, 0.1):
        ask(page, "Count")
        expect(page.locator("[aria-busy] .body")).to_contain_text("tick 10")
        other = page.context.new_page()
        other.goto(page.url)
        expect(other.locator(".notice")).to_contain_text("generated in another tab")
        ask(other, "Who are you?")  # while the first tab generates
        for tab in (page, other):
            expect(tab.locator("[aria-busy]")).to_have_count(0)
    stored = "JSON.parse(Object.values(localStorage).find(x => x.includes('nodes'))).nodes"
    texts = page.evaluate(f"{stored}.map(node => node.parts.map(part => part.text).join(''))")
    assert texts[:3] == ["Count", LONG, "Who are you?"] and len(texts) == 4 and texts[3]
    for tab in (page, other):
        expect(tab.locator(".bubble")).to_have_text(["Count", "Who are you?"])
        expect(tab.locator(".body").first).to_have_text(LONG)
    ask(page, "Smile")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    expect(other.locator(".bubble")).to_have_count(3)  # the other tab follows
    assert page.evaluate(f"{stored}.length") == 6


def test_conversations_are_searched(page: Page) -> None:
    for text in ("Smile", "Who are you?"):
        page.get_by_role("button", name="New conversation").first.click()
        ask(page, text)
        expect(page.locator("[aria-busy]")).to_have_count(0)
    search = page.get_by_label("Search conversations")
    for words, found in (("NANOCHAT am", ["Who are you?"]), ("smi", ["Smile"]), ("am smile", [])):
        search.fill(words)
        expect(page.locator("#list .open")).to_have_text(found)
    expect(page.locator("#list .empty")).to_have_text("No conversation has these words.")
    search.press("Escape")
    expect(page.locator("#list .open")).to_have_count(2)


def test_conversations_are_exported_and_imported(page: Page, tmp_path: Path) -> None:
    ask(page, "What is 347 + 588?")
    expect(page.locator(".text").last).to_have_text("347 + 588 = 935.")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".versions")).to_have_text("2/2")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    page.locator("#open-settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "exported.jsonl"
    download.value.save_as(file)
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator("#list .open")).to_have_count(0)
    other = {
        "messages": [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Yo"}]
    }
    file.write_text(f"{json.dumps(line)}\n\n{json.dumps(other)}\n")
    page.set_input_files("#import-file", file)
    expect(page.locator("#toast")).to_have_text("2 conversations imported.")
    page.get_by_role("button", name="What is 347 + 588?", exact=True).click()
    expect(page.locator(".versions")).to_have_text("2/2")
    for content, reason in {
        '{"messages": [{"role": "user", "content": 1}]}': "a message has no text",
        '{"messages": 5}': 'it has no "messages"',
        "null": 'it has no "messages"',
        "Hi": "not valid JSON",
    }.items():
        file.write_text(content)
        page.set_input_files("#import-file", file)
        shown = re.compile(f"Line 1 is not a conversation .*{reason}")
        expect(page.locator("#toast")).to_have_text(shown)


def test_a_conversation_has_a_system_prompt_and_a_top_p_of_its_own(page: Page) -> None:
    def body_of_next_request() -> dict[str, Any]:
        with page.expect_request(CHAT) as caught:
            ask(page, "Smile")
        expect(page.locator("[aria-busy]")).to_have_count(0)
        return dict(json.loads(caught.value.post_data or ""))

    page.get_by_role("button", name="Options of this conversation").click()
    dialog = page.get_by_role("dialog", name="This conversation")
    dialog.get_by_label("System prompt").fill("Be brief.")
    dialog.get_by_label("Top-p").fill("0.5")
    dialog.get_by_role("button", name="Done").click()
    for _ in range(2):  # also after the page is loaded again
        body = body_of_next_request()
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body["top_p"] == 0.5
        page.reload()
    page.get_by_role("button", name="New conversation").first.click()
    body = body_of_next_request()
    assert body["messages"][0]["role"] == "user" and body["top_p"] == 1


# ---- models


@pytest.fixture(scope="module")
def stages(engine: Engine) -> Iterator[str]:
    """The address of a server with the stages of a pipeline."""
    names = ("sft", "base", "rl")
    sources = [
        ModelSource(
            f"nanochat-d2-{name}", name, 512, lambda: [Engine(engine.model, engine.tokenizer)]
        )
        for name in names
    ]
    with serving_models(sources, max_loaded=2) as url:
        yield url


def test_a_model_is_chosen_and_all_of_them_are_compared(page: Page, stages: str) -> None:
    page.goto("about:blank")
    context = page.context
    tab = context.new_page()
    tab.goto(stages)
    menu = tab.get_by_label("Model", exact=True)
    expect(menu.locator("option")).to_have_text(
        [re.compile("BASE"), re.compile("SFT"), re.compile("RL"), "Compare all models"]
    )
    expect(menu).to_have_value("nanochat-d2-sft")
    menu.select_option("nanochat-d2-base")
    with tab.expect_request(CHAT) as caught:
        ask(tab, "Smile")
    assert json.loads(caught.value.post_data or "")["model"] == "nanochat-d2-base"
    expect(tab.locator(".stats")).to_contain_text("BASE")
    expect(tab.locator("[aria-busy]")).to_have_count(0)
    menu.select_option("*")
    ask(tab, "Who are you?")
    answers = tab.locator(".comparison .turn")
    expect(answers).to_have_count(3)
    expect(tab.locator("[aria-busy]")).to_have_count(0)
    expect(answers.locator("h2")).to_have_text(["BASE", "SFT", "RL"])
    expect(answers.locator(".body")).to_have_text([re.compile(".+")] * 3)
    answers.last.get_by_role("button", name="Continue with this").click()
    expect(answers.nth(1).get_by_role("button", name="Continue with this")).to_be_visible()
    menu.select_option("nanochat-d2-rl")
    with tab.expect_request(CHAT) as caught:
        ask(tab, "Smile")
    assert len(json.loads(caught.value.post_data or "")["messages"]) == 5
    expect(tab.locator("[aria-busy]")).to_have_count(0)
    tab.reload()
    expect(tab.locator(".comparison .turn")).to_have_count(3)
    tab.close()


# ---- accessibility

AXE = importlib.util.find_spec("axe_playwright_python")


@pytest.mark.slow
@pytest.mark.skipif(AXE is None, reason="needs axe-core: pip install axe-playwright-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_violation(browser: Browser, stages: str, width: int, scheme: Any) -> None:
    assert AXE is not None and AXE.origin is not None
    axe = Path(AXE.origin).with_name("axe.min.js").read_text()
    context = browser.new_context(
        viewport={"width": width, "height": 860}, color_scheme=scheme, bypass_csp=True
    )
    tab = context.new_page()
    tab.goto(stages)
    tab.add_script_tag(content=axe)
    found: list[Any] = []

    def check() -> None:
        found.extend(tab.evaluate("axe.run().then((result) => result.violations)"))

    check()
    answer_with(tab, TEXT)
    ask(tab, "Smile")
    expect(tab.locator(".text table")).to_be_visible()
    tab.unroute(CHAT)
    tab.get_by_label("Model", exact=True).select_option("*")
    ask(tab, "What is 347 + 588?")
    expect(tab.locator(".comparison .turn")).to_have_count(3)
    expect(tab.locator("[aria-busy]")).to_have_count(0)
    check()
    tab.get_by_role("button", name="Options of this conversation").click()
    check()
    tab.keyboard.press("Escape")
    if width < 760:
        tab.locator("#menu").click()
        check()
    tab.locator("#open-settings").click()
    check()
    context.close()
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


# ---- another origin


def test_a_page_of_a_configured_origin_streams_answers_from_this_server(
    browser: Browser, engine: Engine, address: str
) -> None:
    """In the browser, whose preflight request and CORS checks are the real ones."""
    ask_from_page = """async (url) => {
      const headers = { "Content-Type": "application/json", Authorization: "Bearer secret" };
      const messages = [{ role: "user", content: "Smile" }];
      const body = JSON.stringify({ messages, stream: true });
      const response = await fetch(url, { method: "POST", headers, body });
      return (await response.text()).includes("[DONE]");
    }"""
    tab = browser.new_context(bypass_csp=True).new_page()  # the page's own policy forbids it
    tab.goto(address)
    url = "/v1/chat/completions"
    with serving(engine, api_key="secret", cors_origins=(address,)) as other:
        assert tab.evaluate(ask_from_page, other + url)
    with serving(engine, api_key="secret") as other, pytest.raises(Error, match="Failed to fetch"):
        tab.evaluate(ask_from_page, other + url)
    tab.context.close()
