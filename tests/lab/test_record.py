from pathlib import Path

import pytest

from weavenet.errors import LabError
from weavenet.lab.process import Process
from weavenet.lab.record import HostRecord, Paths, PodRecord, Record


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths("default", run_root=tmp_path / "run", state_root=tmp_path / "state")


def test_a_record_is_read_back_as_it_was_written(paths: Paths) -> None:
    paths.make()
    record = Record(
        owner=Process(10, 1000, "the lab"),
        hosts=[HostRecord(1, Process(11, 1001, "the agent of host1")), HostRecord(2)],
        pods=[PodRecord("pod1-1", 1, "ab" * 32, "10.32.0.1", '{"ips":[]}')],
        others=[Process(12, 1002, "iperf3 server")],
    )
    paths.save(record)
    assert paths.load() == record


def test_a_lab_that_was_killed_before_it_wrote_a_record_can_still_be_taken_down(paths: Paths) -> None:
    paths.make()
    assert paths.load() == Record()


def test_a_lab_that_is_not_there_is_said_to_be_so(paths: Paths) -> None:
    with pytest.raises(LabError, match="there is no lab called default"):
        paths.load()


def test_a_record_that_is_damaged_is_said_to_be_so(paths: Paths) -> None:
    paths.make()
    paths.record.write_text('{"hosts": [')
    with pytest.raises(LabError, match="damaged"):
        paths.load()


def test_two_labs_of_one_name_are_refused(paths: Paths) -> None:
    paths.make()
    with pytest.raises(LabError, match="take the lab down"):
        paths.make()


def test_nothing_remains_of_the_directories_of_the_last_lab(paths: Paths) -> None:
    paths.make()
    other = Paths("other", paths.run_root, paths.state_root)
    other.make()
    paths.remove()
    assert other.run.is_dir()
    other.remove()
    assert not paths.run_root.exists()
    assert not paths.state_root.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "UP", "-x", "a" * 32], ids=repr)
def test_a_name_that_does_not_fit_into_a_path_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot be called"):
        Paths(name)


def test_a_host_is_named_after_its_number() -> None:
    host = HostRecord(12)
    assert (host.name, host.address, host.peer_name) == ("host12", "10.99.0.12", "7a:00:00:00:00:0c")
