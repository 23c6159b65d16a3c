import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import paths, report
from nanochat.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def section(**more: Any) -> dict[str, Any]:
    return {"title": "Pretraining", "column": "BASE", "order": 0, **more}


def rendered(price: float = 0.0) -> str:
    return report.generate(price).read_text(encoding="utf-8")


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
    assert "| **total** | 3.0 |" in rendered()


def test_a_price_adds_the_cost_of_each_stage() -> None:
    report.write_section("base", section(seconds=1800.0))
    assert "| Pretraining | 30.0 | 12.00 |" in rendered(24.0)
    assert "| cost |" not in rendered()


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
    assert report._moving_average(line, 5) == pytest.approx(line)
    assert report._moving_average((1.0, 9.0, 2.0), 4) == [1.0, 4.0, 2.0]


def test_generated_text_is_escaped() -> None:
    sample = {"prompt": "<b>*x*</b>", "answer": "a|b\n# c `d` <|end|>"}
    report.write_section("base", section(samples=[sample]))
    text = rendered()
    assert r"> **\<b\>\*x\*\</b\>**" in text
    assert r"> a\|b" in text
    assert r"> \# c \`d\` \<\|end\|\>" in text


def test_numbers_are_rounded_and_grouped() -> None:
    numbers = {"big": 1234567, "rate": 6123.4, "share": 0.41234, "odd": float("inf"), "word": "ok"}
    report.write_section("base", section(metrics=numbers))
    text = rendered()
    for cell in ("1,234,567", "6,123", "0.4123", "n/a", "ok"):
        assert f"| {cell} |" in text


def test_the_report_names_machine_software_and_settings(base_dir: Path) -> None:
    report.write_section("base", section(settings={"depth": 4, "empty": ""}))
    text = rendered()
    assert f"torch {torch.__version__}" in text
    assert str(base_dir) in text
    assert "`depth=4`" in text
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


def test_the_command_generates_and_resets(capsys: pytest.CaptureFixture[str]) -> None:
    report.write_section("base", section())
    report.main(["generate"])
    assert capsys.readouterr().out.strip() == str(paths.report_dir() / "report.md")
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
