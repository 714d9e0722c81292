"""Requests that wait: for a ring, or for space that another peer has been asked for.

A request keeps no clock and gives up on nothing by itself: it is tried again whenever the ring changes and every few
seconds, until it is done or its caller is gone. A claim may outlive its answer: a container that has come back with its
address before there is a ring is told yes, and the address is claimed when that becomes possible.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from weavenet.address import Cidr
from weavenet.effects import RequestNumber

# Kubernetes allows some hundred pods on a node. Beyond this somebody asks in a loop.
WAITING_MAX = 10_000


class Allocate(msgspec.Struct):
    """Any address of a subnet."""

    request: RequestNumber
    ident: str
    subnet: Cidr
    is_container: bool


class Claim(msgspec.Struct):
    """This very address."""

    request: RequestNumber | None  # None: answered already
    ident: str
    address: Cidr
    is_container: bool
    no_error_on_unknown: bool
    tries: int = 0


class Prime(msgspec.Struct):
    """Nothing but that there be a ring."""

    request: RequestNumber


R = TypeVar("R", Allocate, Claim, Prime)


class Queue(Generic[R]):
    """Waiting requests of one kind, in the order they came."""

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: list[R] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[R]:
        return iter(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no more may be added."""
        return len(self._waiting) >= WAITING_MAX

    def add(self, request: R) -> None:
        """Let a request wait."""
        assert not self.is_full, "ask before adding"
        self._waiting.append(request)

    def retry(self, attempt: Callable[[R], bool]) -> None:
        """Try every request again; those of which the attempt says that they are done wait no longer."""
        self._waiting = [request for request in self._waiting if not attempt(request)]

    def remove(self, matches: Callable[[R], bool]) -> list[R]:
        """Let some requests wait no longer, and return them."""
        removed = [request for request in self._waiting if matches(request)]
        self._waiting = [request for request in self._waiting if not matches(request)]
        return removed
