"""Reports on disk: what survives a crash at any step of any write, a full disk, and a directory that was put back."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.agent.reporting import spool as spool_module
from certplane.agent.reporting.encoding import decode_reports, encode_reports
from certplane.agent.reporting.spool import FileReportSpool
from certplane.agent.settings import LineageName
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, RenewalStep, Report
from certplane.runtime.files import Directory, open_directory

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAMES = ("api", "spool")
FULL = CertificateStatus(
    name="api",
    state=CertificateState.DEGRADED,
    update_time=NOW + timedelta(microseconds=7),
    profile="web",
    dns_names=("a.example", "b.example"),
    failed_step=RenewalStep.RELOAD,
    issued=HeldCertificate("1f", NOW, NOW + timedelta(days=90), "c2", 2),
    installed=HeldCertificate("1e", NOW, NOW + timedelta(days=90), "c1", 1),
    served=HeldCertificate("1e", NOW, NOW + timedelta(days=90), "c1", 1, NOW),
    renew_time=NOW + timedelta(days=60),
    renew_reason="an operator asked: ü",
    last_error="the reload ended with status 1",
    request_failures=1,
    activation_failures=2,
    next_attempt_time=NOW + timedelta(minutes=1),
    activate_time=NOW + timedelta(hours=1),
    held_by_rollout_id="rollout-1",
)


def report(name: str, state: CertificateState, number: int) -> CertificateStatus:
    """The `number`-th thing that happened."""
    return CertificateStatus(name, state, update_time=NOW + timedelta(seconds=number))


def waiting(number: int, name: str = "api") -> CertificateStatus:
    return report(name, CertificateState.WAITING, number)


class Epochs:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return f"epoch-{self.made}"


@pytest.fixture
def epochs() -> Epochs:
    return Epochs()


def open_spool(folder: Path, epochs: Epochs, names: tuple[str, ...] = NAMES) -> FileReportSpool:
    return FileReportSpool(folder / "reports", names=names, new_epoch=epochs)


def said(spool: FileReportSpool) -> list[tuple[int, CertificateStatus]]:
    return [(each.sequence, each.certificate) for each in spool.reports()]


def test_every_field_survives_the_disk() -> None:
    """A report is read back as it was written, and none of its fields is left out of this test."""
    assert all(getattr(FULL, each.name) for each in dataclasses.fields(FULL))
    reports = [Report(7, FULL), Report(9, waiting(1))]
    assert decode_reports(encode_reports("e", reports)) == ("e", reports)


def test_the_latest_of_each_state_is_kept(tmp_path: Path, epochs: Epochs) -> None:
    """However often a certificate fails, it takes one place; the order is that of the events."""
    spool = open_spool(tmp_path, epochs)
    for number in range(50):
        spool.add(report("api", CertificateState.REQUESTING, number))
        spool.add(report("api", CertificateState.FAILED, number))
    assert [each for _, each in said(spool)] == [
        report("api", CertificateState.REQUESTING, 49),
        report("api", CertificateState.FAILED, 49),
    ]
    assert [sequence for sequence, _ in said(spool)] == [99, 100]


def test_a_restart_keeps_reports_and_never_counts_a_number_twice(tmp_path: Path, epochs: Epochs) -> None:
    """The epoch stays, and numbers go on beyond any that may have been sent."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    kept = said(spool)
    again = open_spool(tmp_path, epochs)
    assert said(again) == kept
    assert again.epoch == spool.epoch
    again.add(waiting(2))
    assert said(again)[-1][0] > kept[-1][0]


def test_what_was_said_last_is_not_said_again(tmp_path: Path, epochs: Epochs) -> None:
    """The comparison at each start adds nothing where nothing happened, acknowledged or not."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.add(waiting(1))
    spool.acknowledge(said(spool)[-1][0])
    assert open_spool(tmp_path, epochs).unacknowledged == 0
    again = open_spool(tmp_path, epochs)
    again.add(waiting(1))
    assert said(again) == said(spool)
    assert again.unacknowledged == 0


def test_an_acknowledgement_leaves_the_latest_as_the_snapshot(tmp_path: Path, epochs: Epochs) -> None:
    """Steps that the broker has are dropped; what each certificate is now stays, for a broker that has lost it."""
    spool = open_spool(tmp_path, epochs)
    spool.add(report("api", CertificateState.REQUESTING, 1))
    spool.add(report("api", CertificateState.WAITING, 2))
    spool.add(report("spool", CertificateState.REQUESTING, 3))
    spool.add(report("api", CertificateState.DUE, 4))
    spool.acknowledge(3)
    for each in (spool, open_spool(tmp_path, epochs)):
        assert [sequence for sequence, _ in said(each)] == [3, 4]
        assert each.unacknowledged == 1


def test_an_older_acknowledgement_changes_nothing(tmp_path: Path, epochs: Epochs) -> None:
    """They only go forward."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.add(waiting(2))
    spool.acknowledge(2)
    spool.acknowledge(1)
    assert spool.unacknowledged == 0


def test_a_state_directory_that_was_put_back_counts_anew(tmp_path: Path, epochs: Epochs) -> None:
    """A broker that has acknowledged what was never made here would skip what comes: the counting takes a new name."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.add(waiting(2, "spool"))
    first = spool.epoch
    spool.acknowledge(5000)
    assert spool.epoch != first
    assert said(spool) == [(1, waiting(1)), (2, waiting(2, "spool"))]
    assert spool.unacknowledged == 2
    again = open_spool(tmp_path, epochs)
    assert (again.epoch, said(again)) == (spool.epoch, said(spool))


def test_a_state_directory_from_before_the_last_reports_counts_anew(tmp_path: Path, epochs: Epochs) -> None:
    """A virtual machine that went back by one renewal: the broker has a later report, and would keep to it."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.acknowledge(1)
    shutil.copytree(tmp_path / "reports", tmp_path / "backup")
    spool.add(waiting(2))
    heard = spool.reports()[-1].sequence
    shutil.rmtree(tmp_path / "reports")
    (tmp_path / "backup").rename(tmp_path / "reports")
    restored = open_spool(tmp_path, epochs)
    first = restored.epoch
    restored.acknowledge(heard)
    assert restored.epoch != first
    assert said(restored) == [(1, waiting(1))]
    assert restored.unacknowledged == 1


def test_certificates_that_are_gone_are_forgotten(tmp_path: Path, epochs: Epochs) -> None:
    """Their reports go with the first that is made without them."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.add(waiting(2, "spool"))
    again = open_spool(tmp_path, epochs, ("spool",))
    assert [each.name for _, each in said(again)] == ["spool"]
    again.add(waiting(3, "spool"))
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["spool", "spool.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "epoch": "e"}'])
def test_a_counter_that_cannot_be_read_starts_another_epoch(
    tmp_path: Path, epochs: Epochs, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers whose past is unknown aren't used again under the same name."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    (tmp_path / "reports" / "spool").write_text(content)
    again = open_spool(tmp_path, epochs)
    again.add(waiting(1))
    assert again.epoch != spool.epoch
    assert said(again) == [(1, waiting(1))]
    assert "start over" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": 1}', '{"format": 1, "epoch": "epoch-1", "reports": [{"sequence": 1, "colour": "red"}]}'],
)
def test_reports_that_cannot_be_read_are_made_anew(tmp_path: Path, epochs: Epochs, content: str) -> None:
    """One broken file costs one certificate its steps, nobody else anything."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    spool.add(waiting(2, "spool"))
    (tmp_path / "reports" / "api.json").write_text(content)
    again = open_spool(tmp_path, epochs)
    again.add(waiting(1))
    assert [each for _, each in said(again)] == [waiting(2, "spool"), waiting(1)]


@pytest.mark.parametrize(
    "members",
    [
        {"update_time": None},
        {"sequence": True},
        {"sequence": 2**70},
        {"sequence": 2**53 + 1},
        {"request_failures": 2**31},
        {"activation_failures": -1},
    ],
)
def test_a_report_that_no_stream_could_send_is_made_anew(
    tmp_path: Path, epochs: Epochs, members: dict[str, Any]
) -> None:
    """Or the junk of one file would end every stream of this host."""
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    file = tmp_path / "reports" / "api.json"
    document = json.loads(file.read_bytes())
    document["reports"][0] |= members
    file.write_text(json.dumps(document))
    assert said(open_spool(tmp_path, epochs)) == []


def test_reading_alone_writes_nothing(tmp_path: Path, epochs: Epochs) -> None:
    """`status` looks without the lock."""
    assert open_spool(tmp_path, epochs).unacknowledged == 0
    assert not (tmp_path / "reports").exists()


def test_a_listener_hears_of_what_is_new(tmp_path: Path, epochs: Epochs) -> None:
    """Once for each report, after it can be read."""
    spool = open_spool(tmp_path, epochs)
    heard: list[int] = []
    spool.listen(lambda: heard.append(len(spool.reports())))
    spool.add(waiting(1))
    spool.add(waiting(1))
    spool.add(waiting(2, "spool"))
    assert heard == [1, 2]


class Crashed(BaseException):
    """The program is gone."""


@dataclass
class Disk:
    """Fails at its `fail_at`-th step from now, for good: by the program's end, or by having no room."""

    fail_at: int | None = None
    crash: bool = True

    def step(self) -> None:
        if self.fail_at is None:
            return
        self.fail_at -= 1
        if self.fail_at <= 0:
            if self.crash:
                raise Crashed
            raise OSError(errno.ENOSPC, "No space left on device")


class FaultyDirectory(Directory):
    disk: Disk

    def write_new(self, *args: Any, **kwargs: Any) -> None:
        self.disk.step()
        super().write_new(*args, **kwargs)

    def rename(self, *args: Any) -> None:
        self.disk.step()
        super().rename(*args)
        if self.disk.crash:
            self.disk.step()

    def discard(self, name: str) -> None:
        if not name.startswith("."):
            self.disk.step()
        super().discard(name)


def test_a_full_disk_does_not_hold_reports_back(
    tmp_path: Path, epochs: Epochs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are sent from memory, said once in the log, and written when there is room again."""
    disk = Disk(crash=False)
    install(disk, monkeypatch)
    spool = open_spool(tmp_path, epochs)
    spool.add(waiting(1))
    disk.fail_at = 0
    spool.add(waiting(2))
    spool.add(waiting(3, "spool"))
    assert [each for _, each in said(spool)] == [waiting(2), waiting(3, "spool")]
    assert caplog.text.count("could not store") == 1
    disk.fail_at = None
    spool.add(waiting(4, "spool"))
    assert said(open_spool(tmp_path, epochs)) == said(spool)


def test_reports_wait_for_a_folder_that_cannot_be_made(
    tmp_path: Path, epochs: Epochs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that was full before the first report is said once; what came meanwhile is numbered when there is room."""

    def refuse(path: Path, *, create_mode: int | None = None) -> Directory:
        if create_mode is not None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return open_directory(path)

    spool = open_spool(tmp_path, epochs)
    with monkeypatch.context() as full:
        full.setattr(spool_module, "open_directory", refuse)
        spool.add(waiting(1))
        spool.add(waiting(2, "spool"))
    assert said(spool) == []
    assert caplog.text.count("could not store") == 1
    spool.add(waiting(3, "spool"))
    assert [each for _, each in said(spool)] == [waiting(1), waiting(3, "spool")]
    assert said(open_spool(tmp_path, epochs)) == said(spool)


def install(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_faulty(path: Path, *, create_mode: int | None = None) -> Directory:
        directory = open_directory(path, create_mode=create_mode)
        faulty = FaultyDirectory(directory._fd, directory.path)
        faulty.disk = disk
        return faulty

    monkeypatch.setattr(spool_module, "open_directory", open_faulty)


@dataclass
class Broker:
    """Takes reports as the real one does, and complains where it would be misled."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    heard: dict[tuple[str, int], CertificateStatus] = field(default_factory=dict)
    latest: dict[str, CertificateStatus] = field(default_factory=dict)
    taken: list[CertificateStatus] = field(default_factory=list)
    was_full: bool = False
    """What memory alone had is said again after a restart, under another number."""

    def hear(self, epoch: str, reports: list[Report]) -> None:
        for each in reports:
            known = self.heard.setdefault((epoch, each.sequence), each.certificate)
            assert known == each.certificate, "one number, two reports"
            if each.sequence > self.acknowledged.get(epoch, 0):
                doubled = self.latest.get(each.certificate.name) == each.certificate
                assert self.was_full or not doubled, "the same thing counted twice"
                self.latest[each.certificate.name] = each.certificate
                self.taken.append(each.certificate)
                self.acknowledged[epoch] = each.sequence


STATES = st.sampled_from([CertificateState.DUE, CertificateState.REQUESTING, CertificateState.WAITING])
OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(NAMES), STATES),
    st.tuples(st.just("send"), st.integers(1, 6)),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("crash"), st.integers(1, 6)),
    st.tuples(st.just("full"), st.booleans()),
)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


@settings(max_examples=150, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=30))
def test_nothing_is_lost_or_counted_twice_whatever_happens(operations: list[tuple[Any, ...]]) -> None:
    """In the end the broker knows how each certificate is and has had each step that was kept, none of them twice.

    Whatever happens are crashes at any step of any write, full disks, and acknowledgements that are lost.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        World(Path(folder), monkeypatch).live(operations)


class World:
    """A host whose statuses are always on disk, its spool, and the broker."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.epochs, self.disk, self.broker = folder, Epochs(), Disk(), Broker()
        install(self.disk, monkeypatch)
        self.statuses: dict[str, CertificateStatus] = {}
        self.kept: dict[tuple[str, CertificateState], CertificateStatus] = {}
        self.number = 0
        self.full = False
        self.spool = open_spool(folder, self.epochs)

    def live(self, operations: list[tuple[Any, ...]]) -> None:
        for operation in operations:
            try:
                self.do(*operation)
            except Crashed:
                self.restart()
        self.full, self.disk.fail_at = False, None
        self.restart()
        self.do("send", 1000)
        assert self.broker.latest == self.statuses
        for place, certificate in self.kept.items():
            assert certificate in self.broker.taken, f"{place} was kept and never told"
        self.do("acknowledge")
        assert self.spool.unacknowledged == 0

    def do(self, what: str, *how: Any) -> None:
        match what, how:
            case "add", (name, state):
                self.number += 1
                self.statuses[name] = report(name, state, self.number)
                self.add(self.statuses[name])
            case "send", (count,):
                after = self.broker.acknowledged.get(self.spool.epoch, 0)
                self.broker.hear(self.spool.epoch, self.spool.reports(after)[:count])
            case "acknowledge", ():
                self.spool.acknowledge(self.broker.acknowledged.get(self.spool.epoch, 0))
            case "restart", ():
                self.restart()
            case "crash", (step,):
                self.disk.crash, self.disk.fail_at = True, step
            case "full", (full,):
                self.full, self.disk.crash, self.disk.fail_at = full, False, 0 if full else None
                self.broker.was_full |= full

    def restart(self) -> None:
        """The program starts: what it finds is compared with what was said, as the agent does."""
        if self.disk.crash:
            self.disk.fail_at = None
        if self.full:
            self.kept.clear()  # what memory alone had is gone with it
        self.spool = open_spool(self.folder, self.epochs)
        for status in self.statuses.values():
            self.add(status)

    def add(self, status: CertificateStatus) -> None:
        """The latest of a state takes the place of the one before; on a full disk it is kept until a restart only."""
        place = status.name, status.state
        if self.kept.get(place) != status:
            self.kept.pop(place, None)
        self.spool.add(status)
        if not self.full:
            self.kept[place] = status


def test_a_name_from_the_settings_is_kept(tmp_path: Path) -> None:
    """A name of agent.yml is a text of a kind of its own, which msgspec alone doesn't take."""
    name = LineageName.parse("web")
    FileReportSpool(tmp_path, names=[name], new_epoch=lambda: "e").add(waiting(1, name))
    (kept,) = FileReportSpool(tmp_path, names=[name], new_epoch=lambda: "e").reports()
    assert (kept.certificate.name, type(kept.certificate.name)) == ("web", str)
