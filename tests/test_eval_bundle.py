import hashlib
import io
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat import dataset
from nanochat.data import download as download_module
from nanochat.data import eval_bundle, hub_files, responses
from nanochat.errors import UserError
from tests.hub import Hub, running_hub
from tests.shared_data import EVAL_DATA, needs_eval_data

ARCHIVE = "/files/eval_bundle.zip"
FILES = {
    "core.yaml": "icl_tasks: []\n",
    "eval_meta_data.csv": "Eval Task,Random baseline\n",
    "eval_data/a/some.jsonl": '{"query": "Why?"}\n' * 20_000,
}


def zipped(files: dict[str, str], root: str = "eval_bundle/") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # not compressed: a flipped bit stays one
        for name, text in files.items():
            archive.writestr(f"{root}{name}", text)
        archive.writestr("__MACOSX/._core.yaml", "not part of it")
    return content.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A plain server of files: it states sizes, and no commit."""
    monkeypatch.setattr(download_module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(responses, "TIMEOUT_SECONDS", 1.5)
    with running_hub() as running:
        running.files[ARCHIVE] = zipped(FILES)
        running.is_small_file_store, running.states_checksums = True, False
        monkeypatch.setattr(eval_bundle, "BUNDLE_URL", f"{running.url}{ARCHIVE}")
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_the_bundle_is_downloaded_once_and_unpacked(hub: Hub, base_dir: Path) -> None:
    assert eval_bundle.fetch_bundle() == base_dir / "eval_bundle" == eval_bundle.fetch_bundle()
    assert contents(base_dir / "eval_bundle") == FILES
    assert hub.requests == [ARCHIVE]
    assert names(base_dir) == {"eval_bundle"}  # the archive is removed
    assert stat.S_IMODE((base_dir / "eval_bundle").stat().st_mode) == 0o755


def test_threads_and_processes_download_it_once(hub: Hub, base_dir: Path) -> None:
    threads = [threading.Thread(target=eval_bundle.fetch_bundle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(base_dir / "eval_bundle") == FILES and hub.requests == [ARCHIVE]


def test_it_is_prefetched_with_the_files_of_the_stage_eval(
    hub: Hub, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "TASK_FILES", {"eval": [], "mid": []})
    monkeypatch.setattr(hub_files, "word_list", lambda: ())  # tested with the other files
    dataset.main(["-n", "0", "--prefetch=mid"])
    assert hub.requests == []
    dataset.main(["-n", "0", "--prefetch=eval"])
    assert hub.requests == [ARCHIVE]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert contents(eval_bundle.fetch_bundle()) == FILES


def test_offline_a_missing_bundle_is_one_line_with_a_remedy(
    hub: Hub, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"eval_bundle is missing and HF_HUB_OFFLINE.*--bundle=PATH"
    ):
        eval_bundle.fetch_bundle()
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["half", "half, no length", "stall", "503", "page"])
def test_a_broken_download_is_continued(hub: Hub, base_dir: Path, fault: Any) -> None:
    hub.faults = [fault]
    eval_bundle.fetch_bundle()
    assert contents(base_dir / "eval_bundle") == FILES
    half = len(hub.files[ARCHIVE]) // 2
    has_half = fault in ("half", "half, no length", "stall")
    assert hub.requests == [ARCHIVE, f"{ARCHIVE} from {half}" if has_half else ARCHIVE]


def test_an_address_that_does_not_answer_is_one_line_with_a_remedy(
    hub: Hub, base_dir: Path
) -> None:
    hub.files.clear()
    with pytest.raises(
        UserError, match=r"eval_bundle\.zip could not be downloaded: HTTP 404; .*PATH"
    ):
        eval_bundle.fetch_bundle()
    assert not (base_dir / "eval_bundle").exists()


def test_a_redirect_to_another_host_is_followed(hub: Hub, base_dir: Path) -> None:
    hub.is_small_file_store = False
    eval_bundle.fetch_bundle()
    assert contents(base_dir / "eval_bundle") == FILES


def test_a_stated_sha256_is_checked(hub: Hub, base_dir: Path) -> None:
    hub.is_small_file_store, hub.states_checksums = False, True
    hub.faults = ["flip"]
    eval_bundle.fetch_bundle()
    assert contents(base_dir / "eval_bundle") == FILES
    assert hub.requests == [ARCHIVE, ARCHIVE]


def test_without_a_checksum_a_damaged_archive_is_found_by_its_own(hub: Hub, base_dir: Path) -> None:
    hub.faults = ["flip"]
    with pytest.raises(UserError, match=r"Bad CRC-32.*it was removed, run the command again"):
        eval_bundle.fetch_bundle()
    assert names(base_dir) == set()
    eval_bundle.fetch_bundle()
    assert contents(base_dir / "eval_bundle") == FILES


def link(target: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"eval_bundle/{target}")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["eval_bundle/../../outside", "eval_bundle//etc/outside", "eval_bundle/a/../../../outside",
     "eval_bundle/C:outside", "eval_bundle/..\\outside", link("eval_data/outside")],
)  # fmt: skip
def test_unsafe_members_are_refused(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    archive = folder / "some.zip"
    archive.write_bytes(zipped(FILES))
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(name, "/etc/passwd")
    with pytest.raises(UserError, match="a link or a path outside"):
        eval_bundle.unpack(archive, folder / "eval_bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_archives_that_are_too_large_or_not_the_bundle_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "some.zip"

    def refusal(content: bytes) -> str:
        archive.write_bytes(content)
        with pytest.raises(UserError) as caught:
            eval_bundle.unpack(archive, tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    assert "File is not a zip file" in refusal(b"<html>Please log in</html>")
    assert "has no core.yaml" in refusal(zipped({"other": "x"}))
    monkeypatch.setattr(eval_bundle, "MAX_FILES", 2)
    assert "3 files of" in refusal(zipped(FILES)) and "more than 2" in refusal(zipped(FILES))
    monkeypatch.setattr(eval_bundle, "MAX_FILES", 10)
    monkeypatch.setattr(eval_bundle, "MAX_BYTES", 1000)
    assert "more than 10 of 1,000" in refusal(zipped(FILES))


def test_a_bundle_without_a_folder_of_its_own_is_unpacked_as_well(tmp_path: Path) -> None:
    archive = tmp_path / "some.zip"
    archive.write_bytes(zipped(FILES, root=""))
    eval_bundle.unpack(archive, tmp_path / "bundle")
    assert contents(tmp_path / "bundle").items() >= FILES.items()


def test_a_list_of_tasks_without_end_is_refused(tmp_path: Path) -> None:
    for name in (eval_bundle.BASELINES_FILE, eval_bundle.TASKS_FILE):
        (tmp_path / eval_bundle.TASKS_FILE).write_text("icl_tasks: []")
        with (tmp_path / name).open("ab") as file:
            file.truncate(eval_bundle.MAX_DEFINITIONS + 1)
        with pytest.raises(UserError, match=rf"{name} has 1,000,001 bytes, at most 1,000,000"):
            eval_bundle.read_definitions(tmp_path)
        (tmp_path / name).unlink()


@needs_eval_data
def test_files_in_another_format_are_named(tmp_path: Path) -> None:
    assert eval_bundle.read_definitions(tmp_path) == {}
    for name in (eval_bundle.TASKS_FILE, eval_bundle.BASELINES_FILE):
        shutil.copy(EVAL_DATA / name, tmp_path / name)
    whole = eval_bundle.read_definitions(tmp_path)
    (tmp_path / eval_bundle.BASELINES_FILE).unlink()
    without = {label: {**task, "baseline": 0} for label, task in whole.items()}
    found = eval_bundle.read_definitions(tmp_path)
    assert {label: {**task, "baseline": 0} for label, task in found.items()} == without
    for wrong in ("icl_tasks: 3", "[", "icl_tasks:\n- label: x\n"):
        (tmp_path / eval_bundle.TASKS_FILE).write_text(wrong)
        with pytest.raises(UserError, match=r"core\.yaml has another format"):
            eval_bundle.read_definitions(tmp_path)


def test_the_server_states_what_these_tests_assume(hub: Hub) -> None:
    assert hub.metadata(ARCHIVE) == {}
    hub.states_checksums, hub.is_small_file_store = True, False
    digest = hashlib.sha256(hub.files[ARCHIVE]).hexdigest()
    assert hub.metadata(ARCHIVE)["X-Linked-Etag"] == f'"{digest}"'
