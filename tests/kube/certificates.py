"""Certificates for API servers of tests, made with openssl. Each is its own authority, and good for a day."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """Where one is, and its key."""

    certificate: Path
    key: Path


def make_certificate(directory: Path, name: str, address: str) -> Certificate:
    """Make one for a server at an IPv4 address."""
    made = Certificate(directory / f"{name}.crt", directory / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=api", "-addext", f"subjectAltName=IP:{address}"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return made
