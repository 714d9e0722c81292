"""Deleting a device without waiting for the kernel to bury it.

RTM_DELLINK takes about 40 ms here, of which the device is there for less than one. The kernel unregisters it under its
big lock: down, off its bridge, its addresses, routes, neighbours and sysctls gone, both names free, and for a veth both
ends at once. It announces that (RTM_DELLINK to all listeners), lets go of the lock, and then waits, in rcu_barrier() of
netdev_run_todo() (net/core/dev.c), until no processor can still hold a reference; only then it answers. Nobody can tell
the difference between a device in that state and one that is no more, except who asked for the deletion.

So the request is made by a thread of its own, which lives on for those 40 ms, and the caller waits for the announcement
only. What CNI's DEL promises then holds when it returns: the pod is off the network, its address can be given to
another, and its names can be used again. Closing a packet socket takes some 14 ms for the same reason, and is done in
the same way.

These threads are few at a time; whoever would make one too many waits.
"""

import select
import sys
import threading
from collections.abc import Callable

from weavenet.errors import KernelError
from weavenet.linux.links import delete_link, find_link_by_index
from weavenet.linux.netlink import Group, Kind, Listener, Message, Netlink

_AT_ONCE_MAX = 32
_GLANCE_MS = 20
_GLANCES_MAX = 500  # 10 s in all

_IFINFO_INDEX = slice(4, 8)


class Leftovers:
    """What the kernel takes its time to let go of: threads that nobody waits for, but not too many."""

    def __init__(self) -> None:
        """There are none yet."""
        self._places = threading.BoundedSemaphore(_AT_ONCE_MAX)

    def finish(self, function: Callable[[], None]) -> None:
        """Run a function that must not fail in a thread of its own, as soon as there is a place for it."""
        self._places.acquire()

        def run() -> None:
            try:
                function()
            finally:
                self._places.release()

        threading.Thread(target=run, name="weavenet-leftover").start()

    def remove_link(self, index: int, name: str) -> None:
        """Delete a device of the calling thread's network namespace, and return as soon as it is off the network.

        That it is gone already is fine. Raises KernelError.
        """
        refusal: list[KernelError] = []
        finished = threading.Event()
        netlink = Netlink()

        def delete() -> None:
            try:
                netlink.execute(delete_link(index, name))
            except KernelError as error:
                refusal.append(error)
            finally:
                finished.set()
                netlink.close()

        with Listener(Group.LINK) as listener:
            self.finish(delete)
            _await_removal(listener, index, name, finished)
        if refusal:
            raise refusal[0]


def _await_removal(listener: Listener, index: int, name: str, finished: threading.Event) -> None:
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    for _ in range(_GLANCES_MAX):
        if finished.is_set():
            return
        if not poll.poll(_GLANCE_MS):
            continue
        heard = listener.receive()
        if heard is None:
            with Netlink() as netlink:
                if find_link_by_index(netlink, index) is None:
                    return
        elif any(_announces_removal(message, index) for message in heard):
            return
    raise KernelError(f"cannot delete {name}: the kernel did not say that it was gone")


def _announces_removal(message: Message, index: int) -> bool:
    # The first byte is the address family. A bridge announces in the same words, but as AF_BRIDGE, that a port left it.
    return (
        message.kind == Kind.DELLINK
        and message.body[0] == 0
        and message.body[_IFINFO_INDEX] == index.to_bytes(4, sys.byteorder)
    )
