"""The HTTP fetcher against a real server with faults, on real files."""

import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from agent.adapters import download, part
from agent.adapters.download import HttpFetcher
from agent.ports import CHUNK_BYTES, FetchFailed, Stopped, WorkFailed
from protocol.outcomes import Reason
from tests.agent.adapters.disks import file_size_limit
from tests.agent.adapters.files_server import Files, serving
from tests.agent.adapters.updates import Update, an_update
from tests.certificates import self_signed
from tests.waiting import until

BIG = bytes(range(256)) * 4_096  # 1 MiB


@pytest.fixture
def files() -> Iterator[Files]:
    """A repository."""
    with serving() as files:
        yield files


def fetch(files: Files, update: Update, folder: Path, **more: object) -> list[tuple[int, int]]:
    """Fetch an update whole, and return the progress that was told."""
    told: list[tuple[int, int]] = []
    fetcher = HttpFetcher(**more)  # type: ignore[arg-type]
    fetcher.fetch(
        update.order(files.url), update.read, folder, stop=lambda: False, tell=lambda *at: told.append(at)
    )
    return told


def held(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finished(update: Update) -> dict[str, bytes]:
    """What a folder holds when the update is there, and nothing else."""
    return {sha256(data).hexdigest(): data for data in update.files.values()}


def test_files_come_under_their_sha256(files: Files, tmp_path: Path) -> None:
    """Every file is fetched once, from its address with the signed query, and progress ends at the whole."""
    update = an_update(files={"a.bin": BIG, "b.txt": b"hello", "empty": b""})
    files.add(update)
    told = fetch(files, update, tmp_path / "new" / "folder")
    assert held(tmp_path / "new" / "folder") == finished(update)
    assert told[-1] == (len(BIG) + 5, len(BIG) + 5)
    assert told == sorted(told)


@pytest.mark.parametrize("close", [False, True], ids=["kept", "closed"])
def test_what_tls_has_decrypted_already_is_not_waited_for(tmp_path: Path, close: bool) -> None:
    """At a low rate a record comes in pieces, of which the socket shows the first alone: one request is enough."""
    update = an_update(files={"a.bin": BIG[:40_960]})
    certificate = self_signed(tmp_path)
    with serving(certificate) as files:
        files.add(update)
        files.headers = {"Connection": "close"} if close else {}
        fetch(files, update, tmp_path / "files", rate_bytes_s=30_000, ca_file=str(certificate))
    assert files.fetched == [None]
    assert held(tmp_path / "files") == finished(update)


def test_what_is_there_is_not_fetched_again(files: Files, tmp_path: Path) -> None:
    """A complete file with the right hash stays; one with wrong bytes of the same size is fetched anew."""
    update = an_update(files={"a.bin": BIG, "b.txt": b"hello"})
    files.add(update)
    fetch(files, update, tmp_path)
    files.asked.clear()
    (tmp_path / sha256(b"hello").hexdigest()).write_bytes(b"jello")
    fetch(files, update, tmp_path)
    assert [path for path, _ in files.asked] == ["/files/" + sha256(b"hello").hexdigest()]
    assert held(tmp_path) == finished(update)


def test_what_other_updates_left_is_removed(files: Files, tmp_path: Path) -> None:
    """Files of orders that were replaced do not fill the disk."""
    update = an_update()
    files.add(update)
    for name in ("0" * 64, "0" * 64 + ".part", "0" * 64 + ".json"):
        (tmp_path / name).write_bytes(b"old")
    fetch(files, update, tmp_path)
    assert held(tmp_path) == finished(update)


def test_a_transfer_cut_short_resumes_by_itself(files: Files, tmp_path: Path) -> None:
    """A payload cut short is asked for from where it ended, with the ETag it came with, while there is progress."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults, files.cut_at = ["cut", "cut"], 300_000
    fetch(files, update, tmp_path)
    assert files.fetched == [None, "bytes=300000-", "bytes=600000-"]
    assert files.if_ranges == [None, '"one"', '"one"']
    assert held(tmp_path) == finished(update)


def test_a_download_resumes_in_another_process(files: Files, tmp_path: Path) -> None:
    """What arrived is kept by a fetcher that gave up, and another one goes on there."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults, files.cut_at = ["cut", "500"], 300_000
    with pytest.raises(WorkFailed) as failed:
        fetch(files, update, tmp_path)
    assert (failed.value.reason, failed.value.transient) == (Reason.SERVER, True)
    fetch(files, update, tmp_path)
    assert files.fetched[-1] == "bytes=300000-"
    assert held(tmp_path) == finished(update)


@pytest.mark.parametrize("damage", ["etag", "prefix", "note", "shorter"])
def test_a_part_that_does_not_agree_is_begun_anew(files: Files, tmp_path: Path, damage: str) -> None:
    """Another ETag, a part changed on the disk, a note that is none or that claims too much: from zero, and right."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    name = sha256(BIG).hexdigest()
    files.faults, files.cut_at = ["cut", "500"], 300_000
    with pytest.raises(WorkFailed):
        fetch(files, update, tmp_path)
    if damage == "etag":
        files.etag = '"two"'
    elif damage == "prefix":
        with (tmp_path / f"{name}.part").open("r+b") as opened:
            opened.write(b"x")
    elif damage == "note":
        (tmp_path / f"{name}.json").write_bytes(b"[]")
    else:
        os.truncate(tmp_path / f"{name}.part", 1_000)
    fetch(files, update, tmp_path)
    assert files.fetched[-1] == ("bytes=300000-" if damage == "etag" else None)
    assert held(tmp_path) == finished(update)


@pytest.mark.parametrize("answer", ["no_range", "wrong_range", "416", "short_range"])
def test_a_server_that_misunderstands_ranges_is_asked_for_the_whole(
    files: Files, tmp_path: Path, answer: str
) -> None:
    """A 200, a 206 that does not fit or ends early, and a 416 all lead to a whole and right file."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults, files.cut_at = ["cut", answer], 300_000
    fetch(files, update, tmp_path)
    assert held(tmp_path) == finished(update)
    assert len(files.fetched) == (2 if answer == "no_range" else 3)


@pytest.mark.parametrize(
    ("fault", "reason", "transient", "refresh"),
    [
        ("403", Reason.SERVER, False, True),
        ("404", Reason.SERVER, False, True),
        ("400", Reason.SERVER, False, False),
        ("500", Reason.SERVER, True, False),
        ("429", Reason.SERVER, True, False),
        ("changed", Reason.VERIFY_FAILED, False, False),
        ("longer", Reason.VERIFY_FAILED, False, False),
        ("part_unasked", Reason.SERVER, True, False),
        ("lost", Reason.NETWORK, True, False),
        ("moved", Reason.NETWORK, True, False),
    ],
)
def test_each_refusal_has_its_reason(
    files: Files, tmp_path: Path, fault: str, reason: Reason, transient: bool, refresh: bool
) -> None:
    """Whose fault it is, whether it is worth trying again, and whether new addresses may help; nothing stays open."""
    update = an_update()
    files.add(update)
    files.faults = [fault] * (download.REDIRECTS_MAX + 1 if fault == "moved" else 1)
    with pytest.raises(WorkFailed) as failed:
        fetch(files, update, tmp_path)
    error = failed.value
    assert (error.reason, error.transient, error.refresh) == (reason, transient, refresh)
    assert "payload.txt" in str(error)
    idle = 1 if fault == "changed" else 0  # a whole answer leaves its connection to the pool
    until(lambda: len(files.connected) == idle, "the end of the others, while the error is still there")
    assert set(held(tmp_path)) & set(finished(update)) == set()


def test_a_mirror_is_asked_for_what_moved_there(files: Files, tmp_path: Path) -> None:
    """Redirects are followed, with the range of what is still missing."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults, files.cut_at = ["moved", "cut", "moved", "moved", "moved"], 300_000
    fetch(files, update, tmp_path)
    assert files.fetched == [None, None, *["bytes=300000-"] * 4]
    assert held(tmp_path) == finished(update)


def test_bytes_changed_on_the_way_are_dropped(files: Files, tmp_path: Path) -> None:
    """Changed bytes never bear the file's name, and nothing of them is resumed."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults = ["changed"]
    with pytest.raises(WorkFailed, match="not those that the manifest names"):
        fetch(files, update, tmp_path)
    assert held(tmp_path) == {}
    fetch(files, update, tmp_path)
    assert files.fetched == [None, None]


def test_a_short_retry_after_is_waited_for(files: Files, tmp_path: Path) -> None:
    """A server that asks to come back at once is asked again; one that asks for hours is left to the core."""
    update = an_update()
    files.add(update)
    files.faults = ["503", "503"]
    fetch(files, update, tmp_path)
    assert len(files.fetched) == 3


def test_nobody_listens(tmp_path: Path) -> None:
    """A server that cannot be reached is the network's fault, and transient."""
    with serving() as files:
        url = files.url
    with pytest.raises(WorkFailed, match="could not be reached") as failed:
        HttpFetcher().fetch(
            an_update().order(url), an_update().read, tmp_path, stop=lambda: False, tell=lambda *_: None
        )
    assert (failed.value.reason, failed.value.transient) == (Reason.NETWORK, True)


def test_stop_is_heard_while_the_server_is_silent(files: Files, tmp_path: Path) -> None:
    """A stalled transfer ends soon after `stop`, and what came is kept."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    files.faults, files.cut_at = ["silent"], 300_000
    stop = threading.Event()
    ended: list[type[BaseException]] = []

    def work() -> None:
        try:
            HttpFetcher().fetch(
                update.order(files.url), update.read, tmp_path, stop=stop.is_set, tell=lambda *_: None
            )
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            ended.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    piece = tmp_path / f"{sha256(BIG).hexdigest()}.part"
    until(lambda: piece.exists() and piece.stat().st_size == 300_000, "the first bytes")
    stop.set()
    thread.join(90)
    assert ended == [Stopped]
    files.silent.set()
    fetch(files, update, tmp_path)
    assert files.fetched[-1] == "bytes=300000-"


def test_the_rate_is_kept(files: Files, tmp_path: Path) -> None:
    """A quarter of a second's worth at a time, and no more than the rate over the whole."""
    update = an_update(files={"a.bin": BIG[:100_000]})
    files.add(update)
    told = fetch(files, update, tmp_path, rate_bytes_s=400_000)
    assert max(b[0] - a[0] for a, b in pairwise(told)) <= 100_000
    assert held(tmp_path) == finished(update)


def test_what_came_with_the_headers_is_not_waited_for(files: Files, tmp_path: Path) -> None:
    """At a low rate a small file lies in our own buffer, whole: the silent socket is no stall."""
    update = an_update(files={"a.bin": BIG[:6_000]})
    files.add(update)
    fetch(files, update, tmp_path, rate_bytes_s=8_000)
    assert files.fetched == [None], "one request brought it"


def test_too_little_space_is_seen_before_the_first_byte(files: Files, tmp_path: Path) -> None:
    """A download that the disk cannot hold is refused with the numbers, and nothing is asked of the server."""
    update = an_update()
    fields = update.manifest.replace(b'"sizeInBytes": 16', b'"sizeInBytes": 1099511627776')
    huge = Update(fields, update.files)
    with pytest.raises(WorkFailed, match=r"MB are free\. Free some space") as failed:
        fetch(files, huge, tmp_path)
    assert failed.value.reason is Reason.NO_SPACE
    assert files.asked == []


def test_a_disk_that_fills_up_is_no_space(files: Files, tmp_path: Path) -> None:
    """The disk refuses more while writing: one sentence, the reason `no_space`, and what had arrived is resumed."""
    update = an_update(files={"a.bin": BIG})
    files.add(update)
    with file_size_limit(400_000), pytest.raises(WorkFailed, match="disk is full") as failed:
        fetch(files, update, tmp_path)
    assert failed.value.reason is Reason.NO_SPACE
    fetch(files, update, tmp_path)
    assert held(tmp_path) == finished(update)
    assert files.fetched[-1] is not None, "it went on where the disk was full"


def test_a_small_file_is_capped(files: Files) -> None:
    """`small` returns what is there, and refuses more than it was allowed."""
    update = an_update()
    files.add(update)
    path = f"manifests/{update.read.update.manifest_path}"
    fetcher = HttpFetcher()
    assert fetcher.small(update.order(files.url), path, 10_000) == update.manifest
    with pytest.raises(FetchFailed, match="larger than"):
        fetcher.small(update.order(files.url), path, 10)
    with pytest.raises(FetchFailed, match="404") as failed:
        fetcher.small(update.order(files.url), "manifests/none", 10)
    assert failed.value.status == 404


def test_named_limits_are_sane() -> None:
    """A piece is a whole number of chunks, and patience ends before a person's does."""
    assert part.PIECE_BYTES % CHUNK_BYTES == 0
    assert download.PATIENCE_S <= 300
