"""Fuzz one target, guided by coverage (atheris, that is libFuzzer): `make fuzz` calls this for each.

    fuzz.py TARGET SECONDS

New inputs that reach new code go to a directory below build/, and start the next run; what crashes, takes longer than
ten seconds or more than a gigabyte is written to regressions/TARGET/, where the tests find it.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["weavenet"]):
    import targets

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
INPUT_BYTES_MAX = 4096


def main() -> None:
    """Run until the time is over; libFuzzer then ends the process."""
    name, seconds = sys.argv[1:]
    found, kept, crashes = BUILD / name, targets.CORPUS / name, targets.REGRESSIONS / name
    for directory in (found, kept, crashes):
        directory.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=1",
        f"-artifact_prefix={crashes}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(found), str(kept)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
