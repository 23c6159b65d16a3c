from pathlib import Path

import pytest

from dev.faults.hubs import HUBS, hostile_hubs
from nanochat.data.responses import check_redirect
from nanochat.errors import UserError


@pytest.mark.slow  # 25 s of waiting
def test_no_hostile_hub_gives_a_bad_file_a_traceback_or_a_hang(tmp_path: Path) -> None:
    outcome = hostile_hubs(tmp_path)
    assert outcome.harms == []
    assert outcome.tried == len(HUBS)


@pytest.mark.parametrize(
    "name", ["more than stated, no length", "size of 10 PB", "redirect to ftp"]
)
def test_a_hostile_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("dev.faults.hubs.HUBS", {name: HUBS[name]})
    assert hostile_hubs(tmp_path).harms == []


def test_a_redirect_stays_encrypted() -> None:
    assert check_redirect("https://a/b", "/c") == "https://a/c"
    assert check_redirect("http://a/b", "https://c") == "https://c"
    for target in ("http://a/b", "ftp://a/b", "file:///etc/passwd", "http://[::bad", "data:,x"):
        with pytest.raises(UserError, match="which is not https;"):
            check_redirect("https://a/b", target)
