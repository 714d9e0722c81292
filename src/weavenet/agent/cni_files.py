"""Keeping the node's CNI files as they are to be, for as long as the agent runs; install.py says what they are.

Apart from that, as the init container has no time to wait for an event loop to be imported.
"""

import asyncio
import logging
from typing import Final

from weavenet.agent.install import Place, install_network, keep_current
from weavenet.errors import ConfigError

CNI_FILES_INTERVAL_S: Final = 10.0  # without its files a node takes no pods; looking costs a millisecond


async def keep_cni_files(place: Place, log: logging.Logger) -> None:
    """Tell the container runtime of the network, and see to it that it stays told. Raises ConfigError at first."""
    loop = asyncio.get_running_loop()
    for done in await loop.run_in_executor(None, install_network, place, log):
        log.info("%s", done)
    while True:
        await asyncio.sleep(CNI_FILES_INTERVAL_S)
        try:
            repaired = await loop.run_in_executor(None, keep_current, place, log)
        except ConfigError as error:  # a full disk, say: pods that run have their network, so this can wait
            log.warning("%s", error)
            continue
        for done in repaired:
            log.warning("was gone or replaced: %s", done)
