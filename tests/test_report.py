import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import sync_playwright

from nanochat import paths, report
from nanochat.errors import UserError
from nanochat.report import figures, sections
from nanochat.report.content import Content, beside_gpt2, count, duration, explanation
from nanochat.report.explanations import GPT2_ACCURACY, GPT2_CORE
from tests.shared_data import EVAL_DATA, needs_eval_data

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"wbr", "meta", "br", "hr", "img", "link", "input"}
# What a model might write: markup, fences, terminal control, overridden direction, half a pair.
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> **bold** ```\n````\n"
    "[a](http://example.com) \x1b[31mred\x07 \u202eoverride &amp; {{ 7 * 7 }} \ud800 مرحبا"
)
CORE_HEADER = ["task", "items", "accuracy, %", "chance, %", "centered"]


def section(**more: Any) -> dict[str, Any]:
    return {"title": "Pretraining", "column": "BASE", "order": 0, **more}


def rendered(price: float = 0.0) -> str:
    return report.generate(price).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, attributes, and the text of folded parts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.text, self.visible = "", ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "details" not in self.open:
            self.visible += data


def page(price: float = 0.0) -> Page:
    html = report.generate(price).with_name("report.html").read_text(encoding="utf-8")
    return Page(html)


def full_report() -> None:
    """A section of every kind, with curves, intervals, CORE and chat tasks."""
    curves = {
        "tokens": [[step, 1000 * step] for step in range(1, 101)],
        "loss": [[step, 5 / step] for step in range(1, 101)],
        "validation loss, text": [[50, 0.2], [100, 0.1]],
        "learning rate": [[step, 1 - step / 200] for step in range(1, 101)],
        "bits per byte, text": [[50, 0.3], [100, 0.2]],
    }
    metrics = {"parameters": 2_113_536, "tokens": 1_024_000, "last loss": 1.09}
    report.write_section("base", section(
        metrics=metrics, curves=curves, seconds=258.0, table={"bits per byte, text": 0.4572},
        settings={"depth": 3, "model_tag": "d3", "source": "primer"}, device="cpu", num_devices=1,
        samples=[{"prompt": "The fox", "answer": " is orange.<|bos|>"}],
    ))  # fmt: skip
    rows = [[task, 1000, accuracy[1], 0.0, 0.2] for task, accuracy in GPT2_ACCURACY.items()]
    report.write_section("base_eval", section(
        title="CORE", order=15, table={"CORE": 0.2}, errors={"CORE": 0.0065},
        rows=[CORE_HEADER, *rows],
    ))  # fmt: skip
    report.write_section("chat_eval_sft", {
        "title": "Evaluation", "column": "SFT", "order": 22, "seconds": 60.0,
        "table": {"MMLU": 0.31, "HumanEval": 0.1}, "errors": {"MMLU": 0.004, "HumanEval": 0.0},
        "intervals": {"HumanEval": [0.063, 0.154]},
        "settings": {"sandbox": "strict"},
    })  # fmt: skip


def test_a_section_survives_a_round_trip() -> None:
    written = section(metrics={"loss": 1.5}, table={"facts": 0.25})
    report.write_section("base", written)
    read = report.read_section("base")
    assert read is not None
    assert {key: read[key] for key in written} == written


def test_a_missing_or_damaged_section_is_none() -> None:
    assert report.read_section("base") is None
    folder = paths.report_dir() / "sections"
    folder.mkdir(parents=True)
    for damage in ("", '{"title": "Pre', "[1]", '"text"'):
        (folder / "base.json").write_text(damage)
        assert report.read_section("base") is None


def test_a_section_of_the_same_settings_is_reused_unless_fresh(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    settings = {"model": "a1", "tokens": 64}
    assert report.already_measured("base_loss", settings) is None
    report.write_section("base_loss", section(settings=settings, metrics={"loss": 1.5}))
    assert report.already_measured("base_loss", {**settings, "tokens": 65}) is None
    assert report.already_measured("base_loss", settings, fresh=True) is None
    assert caplog.text == ""
    found = report.already_measured("base_loss", settings)
    assert found is not None and found["metrics"] == {"loss": 1.5}
    assert "Pretraining: already measured" in caplog.text and "--fresh" in caplog.text


def test_a_report_without_sections_is_an_error_with_the_remedy() -> None:
    with pytest.raises(UserError, match="run a stage first"):
        report.generate()


def test_results_have_a_column_per_stage_in_order() -> None:
    report.write_section(
        "sft", {"title": "SFT", "column": "SFT", "order": 2, "table": {"facts": 0.955}}
    )
    report.write_section("base", section(table={"bits per byte, text": 1.23456, "facts": 0.25}))
    report.write_section("other", {"title": "Loss", "column": None, "table": {"hidden": 1.0}})
    lines = rendered().splitlines()
    first = lines.index("| | BASE | SFT |")
    assert lines[first : first + 4] == [
        "| | BASE | SFT |",
        "|---|--:|--:|",
        "| bits per byte, text | 1.2346 | - |",
        "| facts | 25.0 % | 95.5 % |",
    ]
    assert not any("hidden" in line for line in lines)


def test_a_section_with_labels_of_an_earlier_version_is_rendered() -> None:
    report.write_section("base", section(table={"old label": 0.5}, metrics={"old metric": 9}))
    text = rendered()
    assert "| old label | 50.0 % |" in text and "| old metric | 9 |" in text


def test_sections_are_in_the_order_of_the_pipeline() -> None:
    for name, order in (("a", 3), ("b", 1), ("c", 2)):
        report.write_section(name, {"title": f"Part {name}", "order": order})
    text = rendered()
    assert text.index("Part b") < text.index("Part c") < text.index("Part a")


def test_two_sections_with_the_same_title_both_count_in_the_total_time() -> None:
    for name in ("a", "b"):
        report.write_section(name, {"title": "Same", "seconds": 90.0})
    assert rendered().count("| Same | 1.5 |") == 2
    assert "| total | 3.0 |" in rendered()


def test_a_price_adds_the_cost_of_each_stage() -> None:
    report.write_section("base", section(seconds=1800.0, device="cpu", num_devices=1))
    assert "| stage | CPU minutes | cost |" in rendered(24.0)
    assert "| Pretraining | 30.0 | 12.00 |" in rendered(24.0)
    assert "cost |" not in rendered()


def test_gpu_hours_count_every_gpu_of_the_run() -> None:
    gpu = {"device": "NVIDIA H100", "num_devices": 8}
    report.write_section("base", section(seconds=3600.0, **gpu))
    report.write_section("eval", {"title": "Evaluation", "seconds": 1800.0})
    text = rendered()
    assert "| stage | minutes | GPU hours |" in text
    assert "| Pretraining | 60.0 | 8.00 |" in text
    assert "| Evaluation | 30.0 | 4.00 |" in text and "| total | 90.0 | 12.00 |" in text
    assert "on 8 x NVIDIA H100" in text


def test_curves_are_plotted_to_a_png_without_their_gaps() -> None:
    curves = {
        "loss": [[step, 5 / step] for step in range(1, 200)],
        "bits per byte": [[10, None], [20, 1.5], [30, 1.4]],
        "one point": [[1, 1.0]],
        "none": [],
    }
    report.write_section("base", section(curves=curves))
    assert "![Pretraining](base.png)" in rendered()
    assert (paths.report_dir() / "base.png").read_bytes().startswith(PNG)


def test_without_a_curve_there_is_no_plot() -> None:
    report.write_section("base", section(curves={"loss": [[1, 2.0]]}))
    assert "![" not in rendered()
    assert not (paths.report_dir() / "base.png").exists()


def test_the_moving_average_keeps_ends_and_straight_lines() -> None:
    line = tuple(3.0 * i for i in range(50))
    assert figures._moving_average(line, 5) == pytest.approx(line)
    assert figures._moving_average((1.0, 9.0, 2.0), 4) == [1.0, 4.0, 2.0]


def test_samples_in_markdown_are_code_blocks_that_their_text_cannot_end() -> None:
    sample = {"prompt": "<b>*x*</b>", "answer": HOSTILE}
    report.write_section("base", section(samples=[sample]))
    text = rendered()
    block = re.search(r"(?ms)^(`{3,})text\n<b>\*x\*</b>\n\n(.*?)^\1$", text)
    assert block is not None and len(block[1]) == 5
    assert "</script><script>alert(1)</script>" in block[2] and "example.com" in block[2]
    assert "<script>" not in text.replace(block[2], "")


def test_titles_labels_and_notes_are_no_markdown() -> None:
    cell = "a|b *c* _d_ word_problems <i> [x](y) `z` $1 &lt;\nnext"
    report.write_section(
        "base", section(title=cell, notes=[cell], table={cell: 0.5}, rows=[[cell], [cell]])
    )
    shown = r"a\|b \*c\* \_d\_ word_problems \<i\> \[x\](y) \`z\` \$1 \&lt; next"
    text = rendered()
    assert text.count(shown) >= 4 and cell not in text


def test_nothing_in_a_section_becomes_markup_of_the_page() -> None:
    hostile = section(
        title=HOSTILE, notes=[HOSTILE], metrics={HOSTILE: HOSTILE}, table={HOSTILE: 0.5},
        rows=[[HOSTILE], [HOSTILE]], settings={HOSTILE: HOSTILE}, seconds=60.0,
        curves={HOSTILE: [[1, 2.0], [2, 1.0]], "tokens": [[1, 10], [2, 20]]},
        samples=[{"prompt": HOSTILE, "answer": HOSTILE}],
    )  # fmt: skip
    report.write_section("base", hostile)
    parsed = page()
    assert not {tag for tag, _, _ in parsed.attributes} & {"script", "img", "iframe"}
    assert not {name for _, name, _ in parsed.attributes if name.startswith("on")}
    assert parsed.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7 * 7 }}" in parsed.text and "\\u001b[31m" in parsed.text
    assert not sections.HIDDEN.search(parsed.text)
    assert not sections.HIDDEN.search(rendered())


def test_numbers_are_rounded_and_grouped() -> None:
    numbers = {"big": 1234567, "rate": 6123.4, "share": 0.41234, "odd": float("inf"), "word": "ok"}
    report.write_section("base", section(metrics=numbers))
    text = rendered()
    for cell in ("1,234,567", "6,123", "0.4123", "n/a", "ok"):
        assert f"| {cell} |" in text


def test_the_report_names_machine_software_and_settings(base_dir: Path) -> None:
    report.write_section("base", section(settings={"depth": 4, "empty": ""}))
    text = rendered()
    assert f"torch {version('torch')}" in text
    assert str(base_dir) in text
    assert "\ndepth = 4\n" in text
    assert "empty" not in text


def test_generating_the_report_again_adds_nothing() -> None:
    report.write_section("base", section(table={"facts": 0.5}))
    first = rendered()
    report.write_section("base", section(table={"facts": 0.5}))
    assert rendered().count("\n") == first.count("\n")


def test_reset_removes_the_report_and_may_be_repeated() -> None:
    report.write_section("base", section())
    report.generate()
    report.reset()
    report.reset()
    assert not paths.report_dir().exists()


def test_the_page_is_well_formed_and_makes_no_request() -> None:
    full_report()
    html = report.generate().with_name("report.html").read_text(encoding="utf-8")
    parsed = Page(html)
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "action")]
    assert all(link.startswith("#") for link in links)
    targets = re.findall(r"url\(([^)]*)\)", html)
    assert targets and all(target.startswith("#") for target in targets)
    assert "@import" not in html and "://" not in html
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in [*links, *targets]} == set(ids)


def test_the_page_begins_with_the_summary_in_three_sentences() -> None:
    full_report()
    summary = page().visible.split("Results")[0]
    first, quality, talk = (
        summary.index(f) for f in ("A model of 2.11 million", "CORE of the base", "Talk to it")
    )
    assert first < quality < talk
    assert "on the text of primer: 1.02 million tokens in pretraining" in summary
    assert "it took 5.3 minutes" in summary
    assert "python -m scripts.chat_cli" in summary and "python -m scripts.chat_web" in summary
    assert f"NANOCHAT_BASE_DIR={paths.base_dir()} " in summary


def test_details_are_folded_and_results_are_not() -> None:
    full_report()
    parsed = page()
    for shown in ("bits per byte, text", "Loss on validation text", "CPU minutes", "strict"):
        assert shown in parsed.visible
    for folded in ("depth = 3", "last loss"):
        assert folded in parsed.text and folded not in parsed.visible
    assert not [
        value for tag, name, value in parsed.attributes if (tag, name) == ("details", "open")
    ]


def test_every_part_names_the_file_that_its_figures_are_from() -> None:
    full_report()
    visible = page().visible
    assert visible.count("sections/base.json") >= 3
    assert "base_checkpoints/d3/metrics.jsonl" in visible
    assert "`sections/base.json`, `base_checkpoints/d3/metrics.jsonl`" in rendered()
    assert "`sections/chat_eval_sft.json`, `chat_eval/sft_*.jsonl`" in rendered()


def test_the_parts_of_the_page_are_in_their_order() -> None:
    full_report()
    titles = ["Results", "Time and cost", "Machine", "Curves", "Samples", "CORE by task",
              "ChatCORE by task", "Sandbox", "Details"]  # fmt: skip
    html = report.generate().with_name("report.html").read_text(encoding="utf-8")
    found = re.findall(r"<h2>([^<,]*)", html)
    assert found == titles


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_its_window(width: int, scheme: Literal["light", "dark"]) -> None:
    """Nothing overflows to the right, nothing is requested, and there are at most four screens."""
    full_report()
    address = report.generate().with_name("report.html").as_uri()
    requested: list[str] = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        viewport = {"width": width, "height": 800}
        opened = browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        opened.on("request", lambda request: requested.append(request.url))
        opened.goto(address)
        size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        scroll_width, scroll_height = opened.evaluate(size)
        unfold = "for (const part of document.querySelectorAll('details')) part.open = true"
        opened.evaluate(unfold)
        unfolded_width, _ = opened.evaluate(size)
        browser.close()
    assert requested == [address]
    assert (scroll_width, unfolded_width) == (width, width)
    assert width < 1200 or scroll_height <= 4 * 800


def test_equal_sections_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.report.sections.now", lambda: "2026-12-01 12:00:00")
    monkeypatch.setattr("nanochat.report.content.now", lambda: "2026-12-01 12:00:00")
    full_report()
    files = [report.generate().with_name(name) for name in ("report.md", "report.html", "base.png")]
    first = [file.read_bytes() for file in files]
    report.generate()
    assert [file.read_bytes() for file in files] == first


def test_intervals_are_those_of_the_section_or_1_96_standard_errors() -> None:
    full_report()
    text = rendered()
    assert "| CORE | 0.2000 (0.187–0.213) | - |" in text
    assert "| MMLU | - | 31.0 % (30.2–31.8) |" in text
    assert "| HumanEval | - | 10.0 % (6.3–15.4) |" in text  # not the error of 0
    assert "31.0 %30.2–31.8" in page().visible and "the 95\xa0% interval" in page().visible


def test_an_interval_of_no_width_is_left_out_and_one_of_shares_stays_in_0_to_100() -> None:
    report.write_section("base", section(
        table={"a": 1.0, "b": 0.99, "c": 0.5}, errors={"a": 0.0, "b": 0.01},
        intervals={"c": [0.4, "high"]},
    ))  # fmt: skip
    text = rendered()
    assert "| a | 100.0 % |" in text and "| c | 50.0 % |" in text
    assert "| b | 99.0 % (97.0–100.0) |" in text


def test_training_and_validation_loss_share_a_panel_over_tokens() -> None:
    full_report()
    data = sections.read_all(paths.report_dir() / "sections")[0]
    loss, rate, other = figures.panels_of(data)
    assert list(loss.lines) == ["training", "validation, text"]
    assert loss.lines["validation, text"] == [(50_000.0, 0.2), (100_000.0, 0.1)]
    assert (loss.x_label, rate.title) == ("tokens", "learning rate, share of the peak")
    assert loss.is_main and rate.is_main and not other.is_main
    assert "validation, text" in page().visible


def test_a_single_evaluation_is_a_point_in_the_panel_of_the_loss() -> None:
    curves = {"loss": [[1, 3.0], [2, 2.0]], "validation loss, text": [[2, 2.5]]}
    report.write_section("mid", {"title": "Midtraining", "curves": curves})
    (panel,) = figures.panels_of(sections.read_all(paths.report_dir() / "sections")[0])
    assert panel.lines["validation, text"] == [(2.0, 2.5)]
    assert "validation, text" in page().visible


def test_the_panel_of_reinforcement_learning_is_the_reward() -> None:
    curves = {name: [[1, 0.5], [2, 0.6]] for name in ("loss", "reward", "bits per byte, text")}
    report.write_section("rl", {"title": "RL", "curves": curves})
    first, *others = figures.panels_of(sections.read_all(paths.report_dir() / "sections")[0])
    assert (first.title, first.x_label, first.is_main) == ("reward", "step", True)
    assert [panel.title for panel in others] == ["loss", "bits per byte, text"]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    steps = list(range(20_001))
    thin, same = figures._thinned(steps, steps)
    assert len(thin) <= figures.MAX_POINTS + 1
    assert (thin[0], thin[-1]) == (0, 20_000) and thin == same
    assert figures._thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_damaged_and_strange_sections_do_not_stop_the_report() -> None:
    folder = paths.report_dir() / "sections"
    folder.mkdir(parents=True)
    (folder / "torn.json").write_text('{"title": "Pre')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "huge.json").write_text(
        '{"title": "Huge", "table": {"x": 1e999, "y": 1%s}}' % ("0" * 400)
    )
    (folder / "empty.json").write_text("{}")
    strange: dict[str, Any] = {
        "title": 7, "column": ["BASE"], "order": "first", "seconds": "long", "settings": [1],
        "metrics": {"a": [1, 2], "b": None}, "table": {"x": "high", "y": None, "z": 0.5},
        "errors": {"z": "wide"}, "rows": [["a", "b"], ["short"], "no row", [1, 2, 3], []],
        "curves": {"loss": [[1, 2], [3], None, [4, "x"], [5, math.inf]], "none": 3},
        "samples": [{"prompt": "only"}, "text", None], "notes": "note", "num_devices": math.nan,
        "future": {"unknown": True},
    }  # fmt: skip
    (folder / "strange.json").write_text(json.dumps(strange))
    strange["column"] = "MID"
    (folder / "other.json").write_text(json.dumps(strange))
    text = rendered()
    assert "| z | 50.0 % |" in text and "| short | |" in text and "Huge" in text
    assert "only" in page().text


def test_explanations_of_metrics_are_in_both_files() -> None:
    report.write_section("base", section(table={"facts": 0.5, "of the future": 0.5}))
    assert "- facts: People, animals" in rendered()
    assert "People, animals" in page().visible and "of the future" in page().visible


def test_labels_made_of_others_are_explained() -> None:
    assert "one of 8 sampled" in explanation("GSM8K pass@8")
    assert "Not ChatCORE" in explanation("ChatCORE with max_problems=50")


def test_core_by_task_is_shown_beside_gpt2() -> None:
    full_report()
    content = Content(sections.read_all(paths.report_dir() / "sections"))
    groups = content.core_bars()
    assert [group.label for group in groups] == list(GPT2_ACCURACY)
    names = [bar.name for bar in groups[0].bars]
    assert names == ["this model", "GPT-2 124M", "GPT-2 355M", "GPT-2 774M", "GPT-2 1.5B"]
    assert [bar.text for bar in groups[1].bars] == ["0.200", "0.002", "0.044", "0.045", "0.092"]
    assert all(
        0 <= bar.left <= 100 and bar.left + bar.width <= 100.1 for g in groups for bar in g.bars
    )
    assert "| jeopardy | 0.200 | 0.002 | 0.044 | 0.045 | 0.092 |" in rendered()
    report.write_section("base_eval", section(rows=[["task", "items"], ["jeopardy", "many"]]))
    assert "beside GPT-2" not in rendered()


def test_a_bar_below_zero_extends_to_the_left_of_it() -> None:
    rows = [CORE_HEADER, ["boolq", 3270, 50.0, 62.0, -0.3158]]
    report.write_section("base_eval", section(rows=rows))
    content = Content(sections.read_all(paths.report_dir() / "sections"))
    (group,) = content.core_bars()
    own = group.bars[0]
    assert own.left == 0 and own.left + own.width == pytest.approx(group.mark, abs=0.02)


@needs_eval_data
def test_the_scores_of_gpt2_are_the_published_ones() -> None:
    chance: dict[str, float] = {}
    for column, size in enumerate(("", "-medium", "-large", "-xl")):
        path = EVAL_DATA / f"openai-community-gpt2{size}.csv"
        rows = [[cell.strip() for cell in row] for row in csv.reader(path.open(encoding="utf-8"))]
        assert len(rows) == 24
        for task, accuracy, centered in rows[1:-1]:
            assert GPT2_ACCURACY[task][column] == pytest.approx(100 * float(accuracy), abs=1e-9)
            # Chance follows from both: centered = (accuracy - chance) / (1 - chance).
            value = (float(accuracy) - float(centered)) / (1 - float(centered))
            assert chance.setdefault(task, value) == pytest.approx(value, abs=1e-4)
        assert rows[-1][0] == "CORE" and float(rows[-1][2]) == GPT2_CORE[column]


def test_numbers_in_sentences_are_short() -> None:
    assert [count(n) for n in (12, 1500, 2_113_536, 1.88e9)] == [
        "12", "1.5 thousand", "2.11 million", "1.88 billion",
    ]  # fmt: skip
    assert [duration(s) for s in (45, 100, 1380, 14_040)] == [
        "45 seconds", "1.7 minutes", "23 minutes", "3.9 hours",
    ]  # fmt: skip
    assert beside_gpt2(0.05) == "GPT-2 124M has 0.1139"
    assert beside_gpt2(0.2) == "GPT-2 355M has 0.1849 and 774M has 0.2146"
    assert beside_gpt2(0.5) == "GPT-2 1.5B has 0.2565"


# ---- compare


def written_report(base: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        report.write_section("base", section(**more))
    return base


def test_two_reports_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"facts": 0.5, "reading": 0.5, "bits per byte, text": 0.45}
    first = written_report(
        tmp_path / "a", monkeypatch, seconds=600.0, table=table,
        errors={"facts": 0.01, "reading": 0.03},
        settings={"depth": 3, "seed": 1, "model": "x", "tokenizer": "ab" * 32},
    )  # fmt: skip
    second = written_report(
        tmp_path / "b", monkeypatch, seconds=660.0,
        table={"facts": 0.55, "reading": 0.55, "bits per byte, text": 0.44, "lists": 1.0},
        errors={"facts": 0.01, "reading": 0.03},
        settings={"depth": 4, "seed": 1, "model": "y", "tokenizer": "cd" * 32},
    )  # fmt: skip
    report.main(["compare", str(first), str(second / "report")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "base.depth 3 4" in lines and "base.tokenizer abababababab cdcdcdcdcdcd" in lines
    assert not any("seed" in line or "model" in line for line in lines)
    assert "facts BASE 50.0 % (48.0–52.0) 55.0 % (53.0–57.0) +5.0 points yes" in lines
    assert "reading BASE 50.0 % (44.1–55.9) 55.0 % (49.1–60.9) +5.0 points no" in lines
    assert "bits per byte, text BASE 0.4500 0.4400 -0.0100 -" in lines
    assert "lists BASE - 100.0 % - -" in lines
    assert "Pretraining 10.0 11.0 +1.0" in lines and "total 10.0 11.0 +1.0" in lines


def test_a_report_equals_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = written_report(tmp_path / "a", monkeypatch, table={"facts": 0.5}, settings={"depth": 3})
    report.main(["compare", f"--first={first}", "--second", str(first / "report" / "sections")])
    out = capsys.readouterr().out
    assert "Settings that differ: none" in out and "+0.0 points" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare needs two folders"),
        (["A"], "compare needs two folders"),
        (["A", "B"], "A has no section of a report"),
    ],
)
def test_a_comparison_without_two_reports_is_an_error(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        report.main(["compare", *words])


def test_a_comparison_prints_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bases = [
        written_report(tmp_path / n, monkeypatch, title="\x1b]0;t\x07", table={HOSTILE: 0.5},
                       seconds=1.0, settings={"a": f"\x1b[31m{n}"})
        for n in "ab"
    ]  # fmt: skip
    report.main(["compare", *map(str, bases)])
    out = capsys.readouterr().out
    assert "\\u001b[31ma" in out and not sections.HIDDEN.search(out)


# ---- the command


def test_the_command_generates_and_resets(capsys: pytest.CaptureFixture[str]) -> None:
    report.write_section("base", section())
    report.main(["generate"])
    expected = [str(paths.report_dir() / f"report.{ending}") for ending in ("md", "html")]
    assert capsys.readouterr().out.split() == expected
    report.main(["reset"])
    assert report.read_section("base") is None
    with pytest.raises(UserError, match="nonsense"):
        report.main(["nonsense"])


def test_a_section_is_an_indented_utf8_file() -> None:
    report.write_section("base", section(metrics={"name": "grün"}))
    path = paths.report_dir() / "sections" / "base.json"
    assert json.loads(path.read_text(encoding="utf-8"))["title"] == "Pretraining"
    assert path.read_text().count("\n") > 3


def test_the_command_without_sections_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "nanochat.report", "generate"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no section in")
    assert done.stderr.count("\n") == 1


def test_the_command_has_the_name_of_the_package_in_its_help() -> None:
    command = [sys.executable, "-m", "nanochat.report", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m nanochat.report [")
