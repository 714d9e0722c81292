"""Where the two things are that a compiler made: the eBPF object and the CNI executable.

In a checkout they are in `build/`; where weavenet is installed, in `lib/weavenet/` of the environment it is in.
"""

import sys
from pathlib import Path
from typing import Final

FASTDP_OBJECT: Final = "fastdp.o"
CNI_EXECUTABLE: Final = "weave-cni"

_CHECKOUT = Path(__file__).parents[3] / "build"
_INSTALLED = Path(sys.prefix) / "lib" / "weavenet"


def artifact(name: str) -> Path:
    """Return where an artifact is, or, if it is nowhere, where a checkout would have it."""
    installed = _INSTALLED / name
    return installed if installed.exists() else _CHECKOUT / name
