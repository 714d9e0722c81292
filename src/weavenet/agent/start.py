"""The program `weaver` begins here: it imports the agent, and keeps the garbage collector out of that.

What is imported stays for the life of the process. Looking through it for garbage, some forty times while it grows, is
a tenth of an agent's start; afterwards it is frozen, so that no later collection looks at it again either.
"""

import gc


def main() -> None:
    """Run `weaver`."""
    gc.disable()
    from weavenet.agent.main import main as weaver  # noqa: PLC0415 - the point of this module

    gc.freeze()
    gc.enable()
    weaver()
