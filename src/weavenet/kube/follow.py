"""Following a collection of objects: list it once, then watch what changes. This is the part that decides.

    ListPage ──last page──▶ Watch ──ended, or cut──▶ (Pause) ──▶ Watch, from the last version seen
       ▲                      │
       └──────(Pause)─────────┴── the history we need is no longer there (410 Gone), or the answer makes no sense

A server that could not be reached may come back with another history: restored from a backup, or made anew. Its
versions are then *below* ours and a watch from ours would stay silent for good, which no error tells. So after such a
break one object is listed (`CheckHistory`) to see the collection's version, before the watch goes on. Versions are to
be compared only like that, as decimal numbers of one kind of object; where they are none, no check is made.

What is told is always consistent: `Listed` is the whole collection, and before it every object that vanished unseen is
told as `Gone`, also where another of the same name has taken its place. Objects are told apart by UID.

Sources: kubernetes.io, "Kubernetes API Concepts" (efficient detection of changes, bookmarks, chunks, 410 Gone);
client-go's reflector for the waits.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from weavenet.effects import Entropy
from weavenet.errors import KubeAnswerError, KubeError, KubeStatusError, KubeUnreachableError
from weavenet.kube.backoff import Backoff
from weavenet.resources import KubeObject

T = TypeVar("T", bound=KubeObject)

PAGE_SIZE = 500
WATCH_MIN_S = 300  # the server ends the watch after this and up to as long again, so that not all end together
SHORT_WATCH_S = 1.0  # a watch that ends sooner, with nothing in it, is a failure that does not say so
GONE = 410
_TRY_LATER = {401, 403, 404, 408, 429}  # may change by itself, and says nothing about what we know


class Resource(msgspec.Struct, Generic[T], frozen=True):
    """A collection: its path, the kind of its objects, and which of them are wanted."""

    path: str  # as in /api/v1/nodes
    kind: type[T]
    field_selector: str = ""
    label_selector: str = ""


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """The whole collection, at the start and whenever it had to be listed again."""

    objects: tuple[T, ...]


class Changed(msgspec.Struct, Generic[T], frozen=True):
    """An object is new or different."""

    object: T


class Gone(msgspec.Struct, Generic[T], frozen=True):
    """An object is no longer there; this is what was last known of it."""

    object: T


Told = Listed[T] | Changed[T] | Gone[T]


class ListPage(msgspec.Struct, frozen=True):
    """Ask for a page of the collection; a blank token is the first one, from the server's latest state."""

    continue_token: str
    limit: int = PAGE_SIZE


class CheckHistory(msgspec.Struct, frozen=True):
    """Ask for one object, to see whether the collection's version is still above ours."""


class Watch(msgspec.Struct, frozen=True):
    """Ask for what changes from this version on; the server ends it after the time."""

    resource_version: str
    timeout_s: int


class Pause(msgspec.Struct, frozen=True):
    """Wait."""

    delay_s: float


Step = ListPage | CheckHistory | Watch | Pause


class Follower(Generic[T]):
    """What is known of one collection, and what to ask next."""

    def __init__(self, entropy: Entropy) -> None:
        """Know nothing."""
        self._entropy = entropy
        self._backoff = Backoff(entropy)
        self._known: dict[tuple[str, str], T] = {}
        self._version: str | None = None  # None: to be listed
        self._pages: list[T] = []
        self._continue_token = ""
        self._is_doubtful = False
        self._has_events = False
        self._pause_s = 0.0

    def next_step(self) -> Step:
        """Return what to do now; a pause is asked for once."""
        if self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            return Pause(pause_s)
        if self._version is None:
            return ListPage(self._continue_token)
        if self._is_doubtful:
            return CheckHistory()
        self._has_events = False
        return Watch(self._version, WATCH_MIN_S + int(self._entropy.fraction() * WATCH_MIN_S))

    # --- answers ------------------------------------------------------------------------------------------------------

    def page_came(self, objects: Sequence[T], version: str, continue_token: str) -> list[Told[T]]:
        """Take one page; with the last one tell the collection."""
        self._pages += objects
        self._continue_token = continue_token
        if continue_token:
            return []
        listed = {each.key: each for each in self._pages}
        vanished = [old for key, old in self._known.items() if _is_another(old, listed.get(key))]
        self._known, self._pages, self._version = listed, [], version
        self._is_doubtful = False
        return [*(Gone(old) for old in vanished), Listed(tuple(listed.values()))]

    def history_came(self, version: str) -> None:
        """Compare the server's version with ours; if it went backwards, list again."""
        self._is_doubtful = False
        if self._version is not None and _is_below(version, self._version):
            self._list_again()

    def changed(self, new: T) -> list[Told[T]]:
        """Take an ADDED or MODIFIED event. Raises KubeAnswerError if the history went backwards."""
        self._advance(new.metadata.resource_version)
        old = self._known.get(new.key)
        self._known[new.key] = new
        return [Gone(old), Changed(new)] if old is not None and _is_another(old, new) else [Changed(new)]

    def deleted(self, last: T) -> list[Told[T]]:
        """Take a DELETED event. Raises KubeAnswerError if the history went backwards."""
        self._advance(last.metadata.resource_version)
        return [Gone(last)] if self._known.pop(last.key, None) is not None else []

    def bookmark(self, version: str) -> None:
        """Take a BOOKMARK event: nothing has changed up to this version. Raises KubeAnswerError."""
        self._advance(version)
        self._backoff.reset()  # they come every minute or so; a list or an event alone does not mean that all is well

    # --- failures -----------------------------------------------------------------------------------------------------

    def watch_ended(self, lasted_s: float) -> None:
        """Note that the server ended the watch, as it does after the time that was asked for."""
        if lasted_s < SHORT_WATCH_S and not self._has_events:
            self._pause_s = self._backoff.next_s()
        else:
            self._backoff.reset()

    def watch_refused(self, error: KubeStatusError) -> None:
        """Note an ERROR event in a watch: whatever it is, the watch cannot go on from where it was."""
        self._list_again()
        self._pause_s = self._backoff.next_s(error.retry_after_s)

    def failed(self, error: KubeError) -> None:
        """Note that the last step failed, and decide from where to go on, and when."""
        retry_after_s = None
        match error:
            case KubeStatusError(code=code):
                retry_after_s = error.retry_after_s
                if code == GONE or (code < 500 and code not in _TRY_LATER):
                    self._list_again()
            case KubeUnreachableError():
                self._is_doubtful = self._version is not None
            case _:
                self._list_again()
        self._pause_s = self._backoff.next_s(retry_after_s)

    def _list_again(self) -> None:
        self._version, self._pages, self._continue_token = None, [], ""
        self._is_doubtful = False

    def _advance(self, version: str) -> None:
        if self._version is not None and _is_below(version, self._version):
            raise KubeAnswerError(
                f"the API's history went backwards, from version {self._version} to {version}; listing again"
            )
        self._has_events = True
        self._version = version


def _is_another(old: T, new: T | None) -> bool:
    return new is None or new.metadata.uid != old.metadata.uid


def _is_below(version: str, ours: str) -> bool:
    return version.isdecimal() and ours.isdecimal() and int(version) < int(ours)
