"""Every exception of weavenet, as a tree.

    WeavenetError
    ├── InputError                  the user or their configuration asked for something impossible
    │   ├── AddressError
    │   │   └── SubnetError         a text is no subnet that addresses can be given from
    │   ├── PeerNameError
    │   ├── ConfigError
    │   └── ManifestError           a Kubernetes manifest was asked for that cannot be made
    │   └── KeyringError            a password cannot be added, used or retired
    ├── RemoteError                 a peer broke the protocol, or is not one; costs it the connection and nobody else
    │   ├── CodecError              bytes that do not decode
    │   │   ├── TruncatedError
    │   │   └── GobError
    │   ├── HandshakeError          the introduction failed
    │   │   ├── NameCollisionError
    │   │   ├── OtherPasswordError  the remote uses one that is valid here, too, but not the one that we tried
    │   │   └── SelfConnectionError
    │   ├── ProtocolError           a message after the introduction was wrong
    │   └── GossipError             a channel refused what it was told
    │       └── RingError           a received ring is not one, or contradicts ours
    │           ├── DifferentSeedsError
    │           └── DifferentRangeError
    ├── IpamError                   an address could not be given, claimed, found or freed
    │   └── IpamWaitError           it may come by itself
    ├── KernelError                 the kernel refused an operation
    │   ├── RefusedError            with the errno it gave
    │   ├── IncompatibleDeviceError a device that is not ours has one of our names
    │   └── NamespaceError          a pod's network namespace cannot be used
    ├── StoreError                  the database could not be read or written
    ├── CniError                    an answer to the container runtime, with its CNI code
    ├── ApiError                    the agent cannot be reached, or refused a request
    │   ├── AgentAwayError          nobody answers at the socket
    │   └── ApiStatusError          the agent answered with an HTTP status that is not a success
    ├── KubeError                   the Kubernetes API could not be asked, or the answer is of no use
    │   ├── KubeUnreachableError    no connection, no answer in time, or one that was cut
    │   ├── KubeStatusError         it answered with a status that is not a success
    │   └── KubeAnswerError         it answered, and not with what was asked for
    ├── ReclaimedError              our addresses have become others'; only a fresh start helps
    └── LabError                    a lab of network namespaces could not be made, used or taken down

"They broke it" is always a RemoteError. What *we* broke is an AssertionError, which ends the process.
"""


class WeavenetError(Exception):
    """The root of all errors that weavenet raises on purpose."""


# --- input ------------------------------------------------------------------------------------------------------------


class InputError(WeavenetError):
    """What was asked for is not possible as it was said."""


class AddressError(InputError):
    """A text is not an address, a CIDR or an endpoint."""

    def __init__(self, text: str, reason: str) -> None:
        """Keep the text as given and why it was refused."""
        super().__init__(f"invalid address {text!r}: {reason}")
        self.text = text
        self.reason = reason


class SubnetError(AddressError):
    """A text is not a subnet that addresses can be given from; the message is Weave's."""

    def __init__(self, text: str, reason: str) -> None:
        """Keep the text as given and why it was refused."""
        super().__init__(text, reason)
        self.args = (f"{reason}: {text}",)


class PeerNameError(InputError):
    """A text is not a peer name."""

    def __init__(self, text: str) -> None:
        """Keep the text as given; the message is Weave's."""
        super().__init__(f'invalid peer name format: "{text}"')
        self.text = text


class ConfigError(InputError):
    """The agent cannot start as configured."""


class ManifestError(InputError):
    """A Kubernetes manifest was asked for that cannot be made; says which parameter is wrong, and why."""


class KeyringError(InputError):
    """A password cannot be added, used or retired as asked; the text never holds one."""


# --- remote -----------------------------------------------------------------------------------------------------------


class RemoteError(WeavenetError):
    """A peer sent what the protocol does not allow."""


class CodecError(RemoteError):
    """Bytes that do not decode."""


class TruncatedError(CodecError):
    """The bytes end before the value does."""


class GobError(CodecError):
    """A gob stream that Go would refuse, too."""


class HandshakeError(RemoteError):
    """The introduction of a connection failed; the text is Weave's where Weave has one."""


class NameCollisionError(HandshakeError):
    """Another peer has our name; trying again cannot help."""


class OtherPasswordError(HandshakeError):
    """We dialled with one of our passwords, and the remote uses another of them."""


class SelfConnectionError(HandshakeError):
    """We have connected to ourself."""


class ProtocolError(RemoteError):
    """A message after the introduction was wrong."""


class GossipError(RemoteError):
    """A gossip channel refused what it was told."""


class RingError(GossipError):
    """A received ring breaks a rule of rings, or says that others own what we own; the text is Weave's."""


class DifferentSeedsError(RingError):
    """A received ring began from other peers than ours: two rings were made, and one of them has to go."""

    def __init__(self) -> None:
        """Use Weave's words; whoever knows the names says more."""
        super().__init__("Received ring was seeded differently from ours")


class DifferentRangeError(RingError):
    """A received ring is of another range than ours: the peers were configured differently."""

    def __init__(self) -> None:
        """Use Weave's words; whoever knows both ranges says more."""
        super().__init__("Received range differs from ours")


# --- ipam -------------------------------------------------------------------------------------------------------------


class IpamError(WeavenetError):
    """An address could not be given, claimed, found or freed; the text is Weave's where Weave has one."""


class IpamWaitError(IpamError):
    """An address could not be given yet: what it waits for may still come, without anybody doing anything."""


# --- kernel -----------------------------------------------------------------------------------------------------------


class KernelError(WeavenetError):
    """The kernel refused an operation."""


class RefusedError(KernelError):
    """A system call or a netlink request failed."""

    def __init__(self, operation: str, number: int, explanation: str) -> None:
        """Keep what was tried and the errno; the explanation is the kernel's own where it gave one."""
        super().__init__(f"cannot {operation}: {explanation}")
        self.operation = operation
        self.number = number
        self.explanation = explanation


class IncompatibleDeviceError(KernelError):
    """A device that is not ours has one of our names, and cannot be made to do."""

    def __init__(self, device: str, attribute: str, actual: str, wanted: str) -> None:
        """Keep which attribute differs, and how."""
        super().__init__(
            f"{device!r} already exists, is not ours, and is incompatible: {attribute}: {actual} vs {wanted}; "
            f"remove what it belongs to, or that device (ip link delete {device})"
        )
        self.device = device
        self.attribute = attribute
        self.actual = actual
        self.wanted = wanted


class NamespaceError(KernelError):
    """A pod's network namespace cannot be used; the text is Weave's where Weave has one."""


# --- store ------------------------------------------------------------------------------------------------------------


class StoreError(WeavenetError):
    """The database could not be read or written."""


# --- cni --------------------------------------------------------------------------------------------------------------


class CniError(WeavenetError):
    """An error answer to the container runtime."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        """Keep the CNI code (cni/codes.py has the table), the message, and details for a human."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


# --- api --------------------------------------------------------------------------------------------------------------


class ApiError(WeavenetError):
    """The agent cannot be reached, or refused a request."""


class AgentAwayError(ApiError):
    """Nobody answers at the socket. `was_there` tells an agent that has ended from one that was never started."""

    def __init__(self, message: str, *, was_there: bool) -> None:
        """Keep which of the two it is: Weave's script has an exit status for each."""
        super().__init__(message)
        self.was_there = was_there


class ApiStatusError(ApiError):
    """The agent answered, and the answer is no. The message is the body."""

    def __init__(self, status: int, body: str) -> None:
        """Keep the HTTP status and the text."""
        super().__init__(body.rstrip("\n") or f"the agent answered with HTTP status {status}")
        self.status = status
        self.body = body


# --- kubernetes -------------------------------------------------------------------------------------------------------


class KubeError(WeavenetError):
    """The Kubernetes API could not be asked, or the answer is of no use. Nothing but time need be lost by it."""


class KubeUnreachableError(KubeError):
    """There was no connection, no answer in time, or one that was cut: nothing is known of what became of a change."""


class KubeStatusError(KubeError):
    """The API answered with a status that is not a success, and said why."""

    def __init__(self, what: str, code: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        """Keep what was asked, the HTTP status, Kubernetes' reason for it, and when to come again if it said so."""
        super().__init__(f"{what}: {code} {reason}: {message}" if message else f"{what}: {code} {reason}")
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def says_absent(self) -> bool:
        """Whether the API itself says that the object does not exist; a proxy's 404 has no such reason."""
        return self.code == 404 and self.reason == "NotFound"


class KubeAnswerError(KubeError):
    """The API answered with something that is no answer to what was asked."""


class ReclaimedError(WeavenetError):
    """Our node was removed from the cluster and our addresses have become others': only a fresh start helps."""


# --- lab --------------------------------------------------------------------------------------------------------------


class LabError(WeavenetError):
    """A lab of network namespaces could not be made, used or taken down; says what failed, why, and what to do."""
