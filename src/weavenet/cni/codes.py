"""The constants of the CNI contract: its versions, and every error code that we answer with, in one table.

Codes up to 99 belong to the specification (CNI 1.1.0, section "Error"); plugins choose their own from 100 on. A runtime
retries whatever fails, so the code is for the human reading the event, with one exception: 11 promises that the same
call will work later without anybody doing anything.

Weave Net answered nearly everything with 100. Its texts are kept where scripts or people may know them; the codes are
the specification's.
"""

from enum import Enum, IntEnum


class Code(IntEnum):
    """What kind of failure an error answer reports."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2  # the message or its details name the key and the value
    UNKNOWN_CONTAINER = 3  # also tells the runtime that it need not call DEL
    INVALID_ENVIRONMENT = 4  # the message names the variable
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_SANDBOX = 8  # not in the specification, but what libcni gives for a wrong CNI_NETNS
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50  # to STATUS: cannot serve ADD
    LIMITED_CONNECTIVITY = 51  # to STATUS: nor are existing pods well connected

    INTERNAL = 100  # a bug of ours; the agent's log has the traceback
    NO_ADDRESS = 101  # IPAM refused
    KERNEL_REFUSED = 102  # the pod's interface could not be made, or removed
    INTERFACE_EXISTS = 103  # CNI_IFNAME is in the pod already, and is not ours for this attachment
    NOT_AS_ADDED = 104  # CHECK found something missing or different
    CLEAN_UP_INCOMPLETE = 105  # GC could not free everything
    HOST_PORT_TAKEN = 106  # another pod of this host has it


class SpecVersion(Enum):
    """The versions of the specification, in their order. All of them are served.

    0.1.0 is also what a configuration without `cniVersion` means. It and 0.2.0 know no chains, no `interfaces`, and one
    address in a result. Weave served them, and some scripts still leave the version out.
    """

    V0_1_0 = "0.1.0"
    V0_2_0 = "0.2.0"
    V0_3_0 = "0.3.0"
    V0_3_1 = "0.3.1"
    V0_4_0 = "0.4.0"  # CHECK
    V1_0_0 = "1.0.0"
    V1_1_0 = "1.1.0"  # STATUS, GC

    def at_least(self, other: "SpecVersion") -> bool:
        """Say whether this version is `other` or newer."""
        versions = list(SpecVersion)
        return versions.index(self) >= versions.index(other)


NEWEST_VERSION = SpecVersion.V1_1_0
