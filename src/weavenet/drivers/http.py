"""HTTP listeners: where an application can be reached, and by whom. What it answers is not decided here.

A Unix socket is root's alone (mode 0600) from before it has a name, and takes the place of the one that a former agent
left without a moment at which there is none. TCP is for what is harmless to read, on loopback unless the user says
otherwise. A client that closes its connection cancels its request, so that a waiting allocation is given up with it.
"""

import os
import socket
from pathlib import Path

from aiohttp import web

from weavenet.errors import ConfigError

SHUTDOWN_TIMEOUT_S = 1.0
KEEPALIVE_TIMEOUT_S = 15.0
_PORT_MAX = 65535


class HttpListener:
    """One application at one place."""

    def __init__(self, application: web.Application) -> None:
        """Serve this application once there is a place."""
        self._runner = web.AppRunner(
            application,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            access_log=None,
        )
        self._unix_path: Path | None = None
        self._unix_inode = 0

    async def listen_unix(self, path: Path) -> None:
        """Take a path. Raises ConfigError if that is not possible."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        unnamed = path.with_name(path.name + ".new")
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file inherits it (unix_bind in net/unix/af_unix.c)
            unnamed.unlink(missing_ok=True)
            listener.bind(str(unnamed))
            listener.listen(socket.SOMAXCONN)
            self._unix_inode = unnamed.stat().st_ino
            unnamed.rename(path)
        except OSError as error:
            listener.close()
            raise ConfigError(f"Unable to create http listener socket: {path}: {error}") from error
        self._unix_path = path
        await self._serve(listener)

    async def listen_tcp(self, address: str) -> int:
        """Take `host:port` and return the port, which matters where port 0 was asked for. Raises ConfigError."""
        host, port = parse_listen_address(address)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise ConfigError(f"Unable to create http listener socket: {address}: {error}") from error
        bound_port = int(listener.getsockname()[1])
        await self._serve(listener)
        return bound_port

    async def listen(self, address: str) -> None:
        """Take what a flag says: an absolute path is a Unix socket, anything else `host:port`. Raises ConfigError."""
        if address.startswith("/"):
            await self.listen_unix(Path(address))
        else:
            await self.listen_tcp(address)

    async def close(self) -> None:
        """Stop listening, end open requests, and take our socket file away unless a later agent has replaced it."""
        await self._runner.cleanup()
        path = self._unix_path
        if path is not None:
            self._unix_path = None
            try:
                if path.stat().st_ino == self._unix_inode:
                    path.unlink()
            except FileNotFoundError:
                return

    async def _serve(self, listener: socket.socket) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()


def parse_listen_address(text: str) -> tuple[str, int]:
    """Read `host:port`, where no host means all of them, as in Go. Raises ConfigError."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > _PORT_MAX:
        raise ConfigError(f"cannot listen at {text!r}: expected an address, a colon, and a port, as in 127.0.0.1:6782")
    return host, int(port_text)
