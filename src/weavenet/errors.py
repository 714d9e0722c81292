"""Every exception of weavenet, as a tree.

    WeavenetError
    ├── InputError                  the user or their configuration asked for something impossible
    │   ├── AddressError
    │   ├── PeerNameError
    │   └── ConfigError
    ├── RemoteError                 a peer broke the protocol, or is not one; costs it the connection and nobody else
    │   ├── CodecError              bytes that do not decode
    │   │   ├── TruncatedError
    │   │   └── GobError
    │   ├── HandshakeError          the introduction failed
    │   ├── ProtocolError           a message after the introduction was wrong
    │   └── GossipError             a channel refused what it was told (ring conflicts are here)
    ├── IpamError                   an address could not be given, claimed, found or freed
    ├── KernelError                 the kernel refused an operation
    ├── StoreError                  the database could not be read or written
    ├── CniError                    an answer to the container runtime, with its CNI code
    └── ApiError                    the agent cannot be reached, or refused a request

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


class PeerNameError(InputError):
    """A text is not a peer name."""

    def __init__(self, text: str) -> None:
        """Keep the text as given; the message is Weave's."""
        super().__init__(f'invalid peer name format: "{text}"')
        self.text = text


class ConfigError(InputError):
    """The agent cannot start as configured."""


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


class ProtocolError(RemoteError):
    """A message after the introduction was wrong."""


class GossipError(RemoteError):
    """A gossip channel refused what it was told."""


# --- ipam -------------------------------------------------------------------------------------------------------------


class IpamError(WeavenetError):
    """An address could not be given, claimed, found or freed; the text is Weave's where Weave has one."""


# --- kernel -----------------------------------------------------------------------------------------------------------


class KernelError(WeavenetError):
    """The kernel refused an operation."""


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
