"""`python -m weavenet.sim`: play seeds, print each one that fails, and a last line that counts.

With `--jobs` seeds are played in several processes; their results are the same, as a run shares nothing with another.
"""

import argparse
import hashlib
import multiprocessing
import sys
from functools import partial

from weavenet.sim.faults import play


def main() -> int:
    """Play what the command line asks for; exit status 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="weavenet.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--nodes", type=int, default=20, help="hosts per run")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    parser.add_argument("--digest", action="store_true", help="print only a digest of all traces, for comparing runs")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    failed = 0
    slowest_s = 0.0
    events = 0
    digest = hashlib.blake2b(digest_size=16)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for seed, result in pool.imap(partial(play, hosts=options.nodes), seeds):
            digest.update(f"{seed} {result.trace}".encode())
            events += result.events
            slowest_s = max(slowest_s, result.converged_s)
            if result.problem is not None:
                failed += 1
                sys.stdout.write(f"seed {seed}: {result.problem}\n")
                sys.stdout.write(f"  replay: python -m weavenet.sim --first {seed} --seeds 1 --nodes {options.nodes}\n")
                sys.stdout.flush()
    if options.digest:
        sys.stdout.write(f"{digest.hexdigest()}\n")
    else:
        sys.stdout.write(
            f"sim: {options.seeds - failed} of {options.seeds} seeds of {options.nodes} nodes held and converged; "
            f"slowest to converge {slowest_s:.0f} virtual s; {events} events; digest {digest.hexdigest()}\n",
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
