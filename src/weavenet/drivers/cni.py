"""The agent's end of the CNI executable: a Unix socket, one call per connection, answered with text and exit status.

The layout of request and answer is drawn in shim/weave-cni.c. The shim passes the pod's network namespace as an open
descriptor. Python's streams cannot receive one, so this reads the socket itself, with recvmsg(2).

A connection lives as long as its call. While a call is being handled, the end of its stream means that the runtime
killed the shim: nobody waits for the answer any more, and the handler is cancelled, so that it undoes what it began.
The same happens when the call takes too long; then the runtime is told to try again later.

Every descriptor received is closed by who received it, here, on all paths, and not before the handler is done with it.
The socket is root's alone (mode 0600 from before it has a name), and the caller's user is asked for once more, since
what comes in acts on network namespaces.

Limits: CALLS_MAX calls at a time (further ones wait in the kernel's queue, and their shims give up by themselves), the
sizes that the shim respects, RECEIVE_LIMIT_S for saying what is wanted, CALL_LIMIT_S for doing it.
"""

import array
import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from weavenet.cni.codes import Code
from weavenet.cni.request import CniCall, Sandbox, Version, parse_call, version_for_error
from weavenet.cni.result import encode_error, encode_versions
from weavenet.errors import CniError, ProtocolError

CALLS_MAX = 256
STRINGS_MAX_BYTES = 64 << 10
BODY_MAX_BYTES = 1 << 20
RECEIVE_LIMIT_S = 10.0
CALL_LIMIT_S = 90.0  # the shim waits 120 s for everything, kubelet 240 s for a sandbox
ACCEPT_PAUSE_S = 0.1

_MAGIC = b"WCNI"
_LAYOUT_VERSION = 1
_REQUEST_HEADER = struct.Struct("!4sIIII")  # magic, version, errno of CNI_NETNS, length of strings, length of stdin
_ANSWER_HEADER = struct.Struct("!4sIII")  # magic, version, exit status, length of stdout
_DESCRIPTOR_BYTES = array.array("i").itemsize
# Room for exactly one descriptor, so that the kernel drops any further one (CMSG_SPACE would have room for two).
_CONTROL_BYTES = socket.CMSG_LEN(_DESCRIPTOR_BYTES)
_CHUNK_BYTES = 64 << 10

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_CLONE_NEWNET = 0x4000_0000
_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

CniHandler = Callable[[CniCall], Awaitable[bytes]]


class Request(msgspec.Struct, frozen=True):
    """What a shim sent, taken apart but not understood. `netns` is an open descriptor, for the receiver to close."""

    name: str
    environment: dict[str, str]
    stdin: bytes
    netns: int | None
    netns_errno: int


class CniServer:
    """Serves the CNI socket."""

    def __init__(
        self, path: Path, handler: CniHandler, log: logging.Logger, *, call_limit_s: float = CALL_LIMIT_S
    ) -> None:
        """Hand every call to `handler`, which returns what goes to stdout or raises CniError."""
        self._path = path
        self._handler = handler
        self._log = log
        self._call_limit_s = call_limit_s
        self._listener: socket.socket | None = None
        self._places = asyncio.Semaphore(CALLS_MAX)

    def listen(self) -> None:
        """Take the path, from a former agent if need be, without a moment at which it is missing. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        unnamed = self._path.with_name(self._path.name + ".new")
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file inherits it (unix_bind in net/unix/af_unix.c)
            unnamed.unlink(missing_ok=True)
            listener.bind(str(unnamed))
            listener.listen(socket.SOMAXCONN)
            unnamed.rename(self._path)
        except OSError:
            listener.close()
            raise
        self._listener = listener

    async def serve_forever(self) -> None:
        """Answer calls until cancelled; then stop listening, and cancel those under way."""
        assert self._listener is not None, "listen comes first"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    await self._places.acquire()
                    try:
                        connection, _ = await loop.sock_accept(self._listener)
                    except OSError as error:  # out of descriptors, say; that passes
                        self._places.release()
                        self._log.warning("cannot accept a CNI call: %s", error)
                        await asyncio.sleep(ACCEPT_PAUSE_S)
                        continue
                    call = calls.create_task(self._serve(connection), name="CNI call")
                    call.add_done_callback(partial(self._finish, connection))
        finally:
            self._listener.close()

    def _finish(self, connection: socket.socket, _: asyncio.Task[None]) -> None:
        connection.close()  # again, for a task that was cancelled before it began
        self._places.release()

    async def _serve(self, connection: socket.socket) -> None:
        received: list[int] = []
        with connection, contextlib.ExitStack() as descriptors:
            descriptors.callback(_close_all, received)
            try:
                _require_allowed_user(connection)
                async with asyncio.timeout(RECEIVE_LIMIT_S):
                    request = await receive_request(connection, received)
            except (ProtocolError, OSError, TimeoutError) as error:
                self._log.warning("dropped a CNI connection: %s", str(error) or type(error).__name__)
                return
            answer = await self._answer(connection, request)
            if answer is not None:
                with contextlib.suppress(OSError, TimeoutError):  # the runtime will call DEL for what it did not hear
                    async with asyncio.timeout(RECEIVE_LIMIT_S):
                        await asyncio.get_running_loop().sock_sendall(connection, answer)

    async def _answer(self, connection: socket.socket, request: Request) -> bytes | None:
        """Return the answer to send, or None if the caller hung up."""
        try:
            call = parse_call(request.name, request.environment, request.stdin, _examine_sandbox(request))
            if isinstance(call, Version):
                return encode_answer(0, encode_versions())
            stdout = await self._handle(connection, call)
        except CniError as error:
            return _encode_error(error, request)
        except Exception:  # noqa: BLE001 - one of the two places: around a request, whose caller must get an answer
            self._log.exception("a CNI call failed by a bug: %s", _describe(request))
            details = "This is a bug. The agent's log has the traceback."
            return _encode_error(CniError(Code.INTERNAL, "internal error of the weavenet agent", details), request)
        return None if stdout is None else encode_answer(0, stdout)

    async def _handle(self, connection: socket.socket, call: CniCall) -> bytes | None:
        task = asyncio.current_task()
        assert task is not None, "runs in a task of serve_forever"
        loop = asyncio.get_running_loop()
        hung_up = False

        def note_hang_up() -> None:
            # The shim sends nothing after its request, so what is readable is the end of the stream, or a stranger.
            nonlocal hung_up
            loop.remove_reader(connection)
            if not limit.expired():
                hung_up = True
                limit.reschedule(None)
                task.cancel()

        limit = asyncio.timeout(self._call_limit_s)
        try:
            async with limit:
                loop.add_reader(connection, note_hang_up)
                try:
                    return await self._handler(call)
                finally:
                    loop.remove_reader(connection)
        except TimeoutError:
            if not limit.expired():
                raise
            details = "What had been begun is undone. The agent's log and `weave status` may say what it waited for."
            message = f"the weavenet agent could not do this within {self._call_limit_s:g} s"
            raise CniError(Code.TRY_AGAIN_LATER, message, details) from None
        except asyncio.CancelledError:
            if hung_up and task.uncancel() == 0:
                self._log.info("a CNI caller went away before its answer: %s", type(call).__name__.upper())
                return None
            raise


# --- the layout -------------------------------------------------------------------------------------------------------


async def receive_request(connection: socket.socket, received: list[int]) -> Request:
    """Read one request. Descriptors are appended to `received` as they come, for the caller to close.

    Raises ProtocolError for what no shim would send, OSError when the connection breaks.
    """
    header = await _receive(connection, _REQUEST_HEADER.size, received)
    strings_length, stdin_length, netns_errno = parse_request_header(header)
    name, environment = parse_strings(await _receive(connection, strings_length, received))
    stdin = await _receive(connection, stdin_length, received)
    return Request(name, environment, stdin, received[0] if received else None, netns_errno)


def parse_request_header(raw: bytes) -> tuple[int, int, int]:
    """Return the length of the strings, the length of stdin, and the errno of CNI_NETNS. Raises ProtocolError."""
    magic, version, netns_errno, strings_length, stdin_length = _REQUEST_HEADER.unpack(raw)
    if magic != _MAGIC or version != _LAYOUT_VERSION:
        raise ProtocolError(f"expected a CNI request of version {_LAYOUT_VERSION}, got {raw!r}")
    if strings_length > STRINGS_MAX_BYTES or stdin_length > BODY_MAX_BYTES:
        raise ProtocolError(f"a CNI request of {strings_length} + {stdin_length} bytes is too long")
    return strings_length, stdin_length, netns_errno


def parse_strings(raw: bytes) -> tuple[str, dict[str, str]]:
    """Return the name that the shim was called by, and the CNI_* variables. Raises ProtocolError."""
    if not raw.endswith(b"\0"):
        raise ProtocolError("the strings of a CNI request do not end in a NUL")
    name, *variables = raw[:-1].decode(errors="replace").split("\0")
    # As getenv(3) does, the first of two variables with one name counts.
    return name, dict(variable.partition("=")[::2] for variable in reversed(variables))


def encode_answer(exit_status: int, stdout: bytes) -> bytes:
    """Write an answer for the shim."""
    assert len(stdout) <= BODY_MAX_BYTES, "the shim would refuse it"
    return _ANSWER_HEADER.pack(_MAGIC, _LAYOUT_VERSION, exit_status, len(stdout)) + stdout


async def _receive(connection: socket.socket, length: int, received: list[int]) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            chunk, control, _, _ = connection.recvmsg(
                min(length - len(data), _CHUNK_BYTES), _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await _readable(connection)
            continue
        received.extend(_descriptors_in(control))
        if not chunk:
            raise ProtocolError(f"the stream ended {length - len(data)} bytes too early")
        data += chunk
    return bytes(data)


def _descriptors_in(control: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % _DESCRIPTOR_BYTES])
    return list(descriptors)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, note_ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


# --- the namespace, the caller, and errors ----------------------------------------------------------------------------


def _examine_sandbox(request: Request) -> Sandbox:
    path = request.environment.get("CNI_NETNS", "")
    if request.netns is None:
        return Sandbox(path, None, os.strerror(request.netns_errno).lower() if request.netns_errno else "not given")
    try:
        is_network = fcntl.ioctl(request.netns, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        is_network = False
    if not is_network:
        return Sandbox(path, None, "not a network namespace")
    theirs, ours = os.fstat(request.netns), Path("/proc/self/ns/net").stat()
    return Sandbox(path, request.netns, is_hosts_own=(theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))


def _require_allowed_user(connection: socket.socket) -> None:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, user, _ = _PEER_CREDENTIALS.unpack(raw)
    if user not in {0, os.geteuid()}:
        raise ProtocolError(f"the caller has user ID {user}, and is neither root nor the agent's own user")


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _encode_error(error: CniError, request: Request) -> bytes:
    return encode_answer(1, encode_error(error, version_for_error(request.stdin)))


def _describe(request: Request) -> str:
    wanted = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS")
    return " ".join([request.name, *(f"{name}={request.environment.get(name, '')}" for name in wanted)])
