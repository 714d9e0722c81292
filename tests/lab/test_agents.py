import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weavenet.errors import LabError
from weavenet.lab import agents
from weavenet.lab.process import Process, this_process
from weavenet.lab.record import HostRecord, Paths

CONNECTIONS = """\
<- 10.99.0.2:49659       established fastdp 7a:00:00:00:00:02(host2) mtu=1376
-> 10.99.0.3:6783        established fastdp 7a:00:00:00:00:03(established) mtu=1376
-> 10.99.0.4:6783        pending     fastdp 7a:00:00:00:00:04(host4)
-> 10.99.0.99:6783       failed      connect: not established, retry: never
"""


class Agent(http.server.BaseHTTPRequestHandler):
    """An agent that knows one page."""

    def do_GET(self) -> None:
        found = self.path == "/status/connections"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(CONNECTIONS.encode() if found else b"404 page not found\n")

    def address_string(self) -> str:
        return "test"

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths("test", run_root=tmp_path, state_root=tmp_path / "state")


@pytest.fixture
def host(paths: Paths) -> Iterator[HostRecord]:
    host = HostRecord(1, this_process())
    paths.host(host).mkdir(parents=True)
    with socketserver.UnixStreamServer(str(paths.host(host) / "weave.sock"), Agent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        server.shutdown()
        thread.join()


def test_only_established_connections_count(paths: Paths, host: HostRecord) -> None:
    assert agents.established(paths, host) == 2


def test_an_agent_that_does_not_answer_has_no_connections(paths: Paths) -> None:
    assert agents.established(paths, HostRecord(2)) == 0


def test_a_refusal_is_passed_on(paths: Paths, host: HostRecord) -> None:
    with pytest.raises(LabError, match="answered /nothing with 404: 404 page not found"):
        agents.query(paths, host, "/nothing")


def test_hosts_that_do_not_connect_are_given_up_with_the_end_of_a_log(paths: Paths, host: HostRecord) -> None:
    paths.log(host).write_text("first line\nERRO: cannot bind\n")
    with pytest.raises(LabError, match=r"not all connected.*host1:\n    first line\n    ERRO: cannot bind"):
        agents.wait_until_connected(paths, [host, *[HostRecord(n, this_process()) for n in (2, 3, 4)]], timeout_s=0)


def test_an_agent_that_died_is_noticed(paths: Paths) -> None:
    dead = HostRecord(2, Process(2**22 + 1, 0, "the agent of host2"))
    with pytest.raises(LabError, match="the agent of host2 ended"):
        agents.wait_until_connected(paths, [dead], timeout_s=0)


def test_an_agent_is_told_only_of_the_peers_it_is_given(paths: Paths) -> None:
    words = agents.command(paths, HostRecord(2), peers=["10.99.0.1"], consensus=3)
    assert words[-1] == "10.99.0.1"
    assert "--name=7a:00:00:00:00:02" in words
    assert "--ipalloc-init=consensus=3" in words


def test_commands_on_a_host_find_its_agent(paths: Paths) -> None:
    found = agents.environment(paths, HostRecord(2))
    assert found["WEAVENET_SOCKET"] == str(paths.run / "host2" / "weave.sock")
    assert found["PATH"].startswith(str(agents.programs()))
