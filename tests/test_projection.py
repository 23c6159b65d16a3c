"""The projected hours to GPT-2's CORE: from sizes by hand, and back to the tokens/s measured."""

import pytest

from dev.bench import projection


def test_the_size_is_that_by_hand() -> None:
    parameters, tokens, flops = projection.size(projection.Run("", 24, 32_768, 8.0))
    width = 64 * 24
    assert parameters == 24 * 12 * width**2 + 32_768 * width
    assert tokens == 8 * parameters
    assert flops == tokens * (6 * parameters + 24 * 12 * width * 2048)


def test_the_measured_mfu_is_that_of_the_measured_tokens_per_second() -> None:
    _, tokens, flops = projection.size(projection.Run("", 20, 32_768, 10.0))
    expected = tokens / (8 * 182_700) / 3600
    assert projection.hours(flops, projection.MEASURED_MFU) == pytest.approx(expected, rel=0.002)


def test_the_table_has_the_hours_at_the_given_and_at_the_expected_mfu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    projection.main(["--mfu=0.25"])
    header, _, plain, *rows = capsys.readouterr().out.splitlines()
    assert "25.0% MFU" in header and "| 2.7 | | 3.04 |" in plain
    for row, run in zip(rows, projection.RUNS, strict=True):
        given, expected = (float(cell) for cell in row.split("|")[6:8])
        assert given == pytest.approx(2 * expected, abs=0.16)  # both are rounded
        assert row.startswith(f"| {run.name} |")
