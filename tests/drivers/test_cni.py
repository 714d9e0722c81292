"""The CNI socket, spoken to by the real executable, compiled here."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from weavenet.cni.codes import Code, SpecVersion
from weavenet.cni.request import Add, CniCall, Del, Status
from weavenet.cni.result import encode_versions
from weavenet.drivers import cni
from weavenet.drivers.cni import CniServer, parse_request_header, parse_strings
from weavenet.errors import CniError, ProtocolError

SHIM_SOURCE = Path(__file__).parents[2] / "shim" / "weave-cni.c"
OWN_NETNS = "/proc/self/ns/net"
CONFIG = {"cniVersion": "1.0.0", "name": "weave", "type": "weave-net"}
HEADER = struct.Struct("!4sIIII")

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to compile the CNI executable")


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the executable under its two names, and one with a time limit of a second."""
    directory = tmp_path_factory.mktemp("cni-bin")
    command = ["gcc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", str(SHIM_SOURCE), "-o"]
    subprocess.run([*command, str(directory / "weave-net")], check=True)
    (directory / "weave-ipam").symlink_to("weave-net")
    (directory / "impatient").mkdir()
    subprocess.run([*command, str(directory / "impatient" / "weave-net"), "-DTIME_LIMIT_S=1"], check=True)
    return directory


def environment(socket_path: Path | str, command: str, **more: str) -> dict[str, str]:
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": OWN_NETNS,
        "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
        "WEAVENET_CNI_SOCKET": str(socket_path),
        "PATH": "/nonexistent",
        "HOME": "not for the agent",
    }
    return variables | more


class Plugin:
    """The executable, run without blocking the loop."""

    def __init__(self, directory: Path, socket_path: Path) -> None:
        self.directory = directory
        self.socket_path = socket_path

    async def start(self, command: str, name: str = "weave-net", **more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self.directory / name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(self.socket_path, command, **more),
        )

    async def run(
        self, command: str, stdin: bytes | None = None, name: str = "weave-net", **more: str
    ) -> tuple[int, bytes]:
        process = await self.start(command, name, **more)
        stdout, _ = await process.communicate(json.dumps(CONFIG).encode() if stdin is None else stdin)
        assert process.returncode is not None
        return process.returncode, stdout


@contextlib.asynccontextmanager
async def serving(
    directory: Path, plugins: Path, handler: Callable[[CniCall], Awaitable[bytes]], call_limit_s: float = 30.0
) -> AsyncIterator[Plugin]:
    path = directory / "cni.sock"
    server = CniServer(path, handler, logging.getLogger("test"), call_limit_s=call_limit_s)
    server.listen()
    task = asyncio.create_task(server.serve_forever())
    try:
        yield Plugin(plugins, path)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def not_called(_: CniCall) -> bytes:
    pytest.fail("no call was to reach the handler")


Run = Callable[[Coroutine[None, None, object]], object]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on either event loop: descriptors and readers are where they differ."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_open() -> Iterator[None]:
    descriptors = Path("/proc/self/fd")
    uvloop.run(asyncio.sleep(0))  # keeps two pipes for signals from its first use on
    before = len(list(descriptors.iterdir()))
    yield
    assert len(list(descriptors.iterdir())) <= before


def test_the_executable_answers_version_without_an_agent(plugins: Path) -> None:
    done = subprocess.run(
        [plugins / "weave-net"], env=environment("/nonexistent", "VERSION"), capture_output=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(encode_versions())
    assert json.loads(done.stdout)["supportedVersions"] == [version.value for version in SpecVersion]


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("", 11)]
)
def test_with_the_agent_away_the_answer_says_so_and_what_to_do(plugins: Path, command: str, code: int) -> None:
    done = subprocess.run(
        [plugins / "weave-net"],
        env=environment('/nonexistent/"quoted"\\\x01/cni.sock', command),
        input=b"{}",
        capture_output=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["code"] == code
    assert answer["msg"] == (
        'the weavenet agent does not answer on /nonexistent/"quoted"\\\x01/cni.sock: No such file or directory'
    )
    assert "weave-net" in answer["details"]
    assert "weave launch" in answer["details"]


@pytest.mark.parametrize(
    ("variables", "stdin", "code", "words"),
    [
        ({}, b" " * (1 << 20) + b"x", Code.INVALID_CONFIG, "larger than 1 MiB"),
        ({"CNI_ARGS": "x" * (65 << 10)}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_* variables"),
        ({"WEAVENET_CNI_SOCKET": "/" + "x" * 200}, b"{}", Code.TRY_AGAIN_LATER, "longer than a socket's may be"),
    ],
    ids=["stdin", "environment", "socket path"],
)
def test_what_is_too_large_to_carry_is_refused_by_the_executable(
    plugins: Path, variables: dict[str, str], stdin: bytes, code: Code, words: str
) -> None:
    done = subprocess.run(
        [plugins / "weave-net"],
        env=environment("/nonexistent", "ADD", **variables),
        input=stdin,
        capture_output=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["code"]) == (1, code)
    assert words in answer["msg"]


def test_the_executable_gives_up_when_stdin_never_ends(plugins: Path) -> None:
    process = subprocess.Popen(
        [plugins / "impatient" / "weave-net"],
        env=environment("/nonexistent", "ADD"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        answer = json.loads(process.stdout.read())
        assert process.wait() == 1
    assert answer["code"] == Code.IO_FAILURE
    assert answer["msg"].endswith("timed out")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "timed out"),
        (b"", "it closed the connection before it had answered"),
        (b"WCNI\0\0\0\1\0\0", "it closed the connection before it had answered"),
        (b"WCNI\0\0\0\1\0\0\0\0\0\0\0\5{}", "it closed the connection before it had answered"),
        (b"HTTP/1.1 400 Bad Request\r\n", "it speaks another version"),
        (b"WCNI\0\0\0\2\0\0\0\0\0\0\0\0", "it speaks another version"),
        (b"WCNI\0\0\0\1\0\0\0\0\xff\0\0\0", "it speaks another version"),
    ],
    ids=["silence", "nothing", "half a header", "half a body", "not ours", "newer", "too long"],
)
def test_an_agent_that_answers_badly_counts_as_away(
    plugins: Path, tmp_path: Path, reply: bytes | None, words: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "cni.sock"))
        listener.listen()
        process = subprocess.Popen(
            [plugins / "impatient" / "weave-net"],
            env=environment(tmp_path / "cni.sock", "ADD"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}")
        process.stdin.close()
        connection, _ = listener.accept()
        with process, connection:
            while reply is not None and not connection.recv(1 << 16).endswith(b"{}"):
                pass
            if reply is not None:
                connection.sendall(reply)
                connection.close()
            answer = json.loads(process.stdout.read())
            assert process.wait() == 1
    assert answer["code"] == Code.TRY_AGAIN_LATER
    assert words in answer["msg"]


def test_a_call_reaches_the_handler_and_its_answer_the_runtime(run: Run, plugins: Path, tmp_path: Path) -> None:
    seen: list[CniCall] = []
    inodes: list[int] = []

    async def handler(call: CniCall) -> bytes:
        seen.append(call)
        assert isinstance(call, Add)
        assert call.sandbox.descriptor is not None
        inodes.append(os.fstat(call.sandbox.descriptor).st_ino)
        return b'{"ips": []}'

    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, handler) as plugin:
            return await plugin.run("ADD", name="weave-ipam")

    assert run(scenario()) == (0, b'{"ips": []}')
    [call] = seen
    assert isinstance(call, Add)
    assert call.plugin.value == "weave-ipam"
    assert call.attachment.ident == "c0ffee/eth0"
    assert str(call.pod) == "default/web"
    assert call.sandbox.path == OWN_NETNS
    assert call.sandbox.is_hosts_own
    assert inodes == [Path(OWN_NETNS).stat().st_ino]


def test_a_configuration_of_a_full_mebibyte_is_carried(plugins: Path, tmp_path: Path) -> None:
    async def handler(call: CniCall) -> bytes:
        assert isinstance(call, Add)
        return b"x" * (1 << 20)

    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, handler) as plugin:
            return await plugin.run("ADD", json.dumps(CONFIG).encode().ljust(1 << 20))

    assert asyncio.run(scenario()) == (0, b"x" * (1 << 20))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/nonexistent", "no such file or directory"),
        ("/etc/hostname", "not a network namespace"),
        ("/proc/self/ns/uts", "not a network namespace"),
        ("", "not given"),
    ],
)
def test_a_namespace_that_cannot_be_had_is_reported_with_the_reason(
    plugins: Path, tmp_path: Path, path: str, problem: str
) -> None:
    seen: list[CniCall] = []

    async def handler(call: CniCall) -> bytes:
        seen.append(call)
        return b""

    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, handler) as plugin:
            return await plugin.run("DEL", CNI_NETNS=path)

    assert asyncio.run(scenario()) == (0, b"")
    [call] = seen
    assert isinstance(call, Del)
    assert (call.sandbox.path, call.sandbox.descriptor, call.sandbox.problem) == (path, None, problem)


def test_an_error_is_answered_in_the_version_of_the_request(plugins: Path, tmp_path: Path) -> None:
    async def handler(_: CniCall) -> bytes:
        raise CniError(Code.NO_ADDRESS, "unable to allocate IP address: none left", "10.32.0.0/12 is full")

    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, handler) as plugin:
            return await plugin.run("ADD", json.dumps(CONFIG | {"cniVersion": "0.4.0"}).encode())

    status, stdout = asyncio.run(scenario())
    assert status == 1
    assert json.loads(stdout) == {
        "cniVersion": "0.4.0",
        "code": 101,
        "msg": "unable to allocate IP address: none left",
        "details": "10.32.0.0/12 is full",
    }


def test_a_call_that_cannot_be_parsed_never_reaches_the_handler(plugins: Path, tmp_path: Path) -> None:
    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, not_called) as plugin:
            return await plugin.run("ADD", b'{"cniVersion":')

    status, stdout = asyncio.run(scenario())
    assert (status, json.loads(stdout)["code"]) == (1, Code.DECODING_FAILURE)


def test_a_bug_in_the_handler_is_logged_and_answered(
    plugins: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_: CniCall) -> bytes:
        raise ZeroDivisionError

    async def scenario() -> list[tuple[int, bytes]]:
        async with serving(tmp_path, plugins, handler) as plugin:
            return [await plugin.run("STATUS", json.dumps(CONFIG | {"cniVersion": "1.1.0"}).encode()) for _ in range(2)]

    for status, stdout in asyncio.run(scenario()):
        assert (status, json.loads(stdout)["code"]) == (1, Code.INTERNAL)
    assert "ZeroDivisionError" in caplog.text
    assert "CNI_COMMAND=STATUS" in caplog.text


def test_a_call_that_takes_too_long_is_cancelled_and_to_be_tried_again(run: Run, plugins: Path, tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def handler(_: CniCall) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    async def scenario() -> tuple[int, bytes]:
        async with serving(tmp_path, plugins, handler, call_limit_s=0.01) as plugin:
            return await plugin.run("ADD")

    status, stdout = run(scenario())
    assert cancelled.is_set()
    answer = json.loads(stdout)
    assert (status, answer["code"]) == (1, Code.TRY_AGAIN_LATER)
    assert answer["msg"] == "the weavenet agent could not do this within 0.01 s"


def test_a_runtime_that_kills_the_executable_cancels_the_call_and_its_undo_is_waited_for(
    run: Run, plugins: Path, tmp_path: Path
) -> None:
    async def scenario() -> list[str]:
        happened: list[str] = []
        begun, undone = asyncio.Event(), asyncio.Event()

        async def handler(_: CniCall) -> bytes:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # an undo that waits for something
                happened.append("undone")
                undone.set()
            return b""

        async with serving(tmp_path, plugins, handler) as plugin:
            process = await plugin.start("ADD")
            assert process.stdin is not None
            process.stdin.write(json.dumps(CONFIG).encode())
            process.stdin.close()
            await begun.wait()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await undone.wait()
            happened.append("still serving" if (await plugin.run("ADD", b""))[0] == 1 else "broken")
        return happened

    assert run(scenario()) == ["undone", "still serving"]


def test_calls_are_handled_side_by_side_up_to_the_limit(
    run: Run, plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "CALLS_MAX", 2)

    async def scenario() -> int:
        under_way, most = 0, 0
        both = asyncio.Event()

        async def handler(_: CniCall) -> bytes:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if under_way == 2:
                both.set()
            await both.wait()
            await asyncio.sleep(0)
            under_way -= 1
            return b""

        async with serving(tmp_path, plugins, handler) as plugin:
            answers = await asyncio.gather(*(plugin.run("ADD") for _ in range(4)))
            assert answers == [(0, b"")] * 4
        return most

    assert run(scenario()) == 2


def test_stopping_the_server_cancels_calls_and_leaves_their_runtimes_an_error(
    run: Run, plugins: Path, tmp_path: Path
) -> None:
    async def scenario() -> tuple[int, bytes]:
        begun = asyncio.Event()

        async def handler(_: CniCall) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return b""

        async with serving(tmp_path, plugins, handler) as plugin:
            waiting = asyncio.create_task(plugin.run("ADD"))
            await begun.wait()
        return await waiting

    status, stdout = run(scenario())
    assert (status, json.loads(stdout)["code"]) == (1, Code.TRY_AGAIN_LATER)


def test_the_socket_is_its_owners_alone_and_replaces_a_former_one(plugins: Path, tmp_path: Path) -> None:
    async def handler(call: CniCall) -> bytes:
        assert isinstance(call, Status)
        return b""

    async def scenario() -> tuple[int, bytes]:
        path = tmp_path / "cni.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as former:
            former.bind(str(path))
        async with serving(tmp_path, plugins, handler) as plugin:
            mode = path.stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
            return await plugin.run("STATUS", json.dumps(CONFIG | {"cniVersion": "1.1.0"}).encode())

    assert asyncio.run(scenario()) == (0, b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cni.sock"]


def test_a_path_that_cannot_be_taken_raises_and_leaves_nothing_open(tmp_path: Path) -> None:
    server = CniServer(tmp_path / "no" / "cni.sock", not_called, logging.getLogger("test"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        server.listen()


# --- what strangers may send ------------------------------------------------------------------------------------------


async def _send_and_hear(path: Path, pieces: list[bytes], descriptors: list[int]) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, str(path))
        if descriptors:
            socket.send_fds(connection, [pieces[0][:1]], descriptors)
            pieces = [pieces[0][1:], *pieces[1:]]
        for piece in pieces:
            await loop.sock_sendall(connection, piece)
            await asyncio.sleep(0)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await loop.sock_recv(connection, 1 << 16):
                heard += chunk
        return heard


def request(strings: bytes, stdin: bytes) -> bytes:
    return HEADER.pack(b"WCNI", 1, 0, len(strings), len(stdin)) + strings + stdin


STRINGS = b"weave-net\0CNI_COMMAND=VERSION\0CNI_NETNS=/x\0"
WHOLE = request(STRINGS, b"{}")


def test_a_request_may_come_one_byte_at_a_time_and_with_too_many_descriptors(
    run: Run, plugins: Path, tmp_path: Path
) -> None:
    async def scenario() -> bytes:
        async with serving(tmp_path, plugins, not_called) as plugin:
            pieces = [WHOLE[i : i + 1] for i in range(len(WHOLE))]
            with contextlib.ExitStack() as stack:
                three = [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
                for descriptor in three:
                    stack.callback(os.close, descriptor)
                return await _send_and_hear(plugin.socket_path, pieces, three)

    heard = run(scenario())
    assert heard[:12] == b"WCNI\0\0\0\1\0\0\0\0"
    assert json.loads(heard[16:]) == json.loads(encode_versions())


def test_a_request_that_ends_early_costs_nobody_else_anything(plugins: Path, tmp_path: Path) -> None:
    async def scenario() -> list[bytes]:
        async with serving(tmp_path, plugins, not_called) as plugin:
            early = [await _send_and_hear(plugin.socket_path, [WHOLE[:cut]], []) for cut in range(len(WHOLE))]
            assert (await plugin.run("", b""))[0] == 1  # served, and told that the command is missing
            return early

    assert asyncio.run(scenario()) == [b""] * len(WHOLE)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n....",
        HEADER.pack(b"WCNI", 2, 0, 10, 10),
        HEADER.pack(b"WCNI", 1, 0, (64 << 10) + 1, 0),
        HEADER.pack(b"WCNI", 1, 0, 10, (1 << 20) + 1),
    ],
    ids=["not ours", "newer", "long strings", "long stdin"],
)
def test_a_header_that_no_shim_would_send_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request_header(raw[:20])


def test_strings_are_the_name_and_the_variables() -> None:
    assert parse_strings(b"weave-net\0") == ("weave-net", {})
    name, variables = parse_strings(
        b"weave-net\0CNI_ARGS=A=B;C=D\0CNI_EMPTY=\0CNI_ARGS=second\0CNI_BAD=\xff\0CNI_ODD\0"
    )
    assert name == "weave-net"
    assert variables == {"CNI_ARGS": "A=B;C=D", "CNI_EMPTY": "", "CNI_BAD": "\ufffd", "CNI_ODD": ""}


@given(st.binary(max_size=60))
def test_any_bytes_are_strings_or_a_protocol_error(raw: bytes) -> None:
    if raw.endswith(b"\0"):
        parse_strings(raw)
    else:
        with pytest.raises(ProtocolError):
            parse_strings(raw)
