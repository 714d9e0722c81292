"""One octet over TCP, there and back, as often as time allows: a program of its own, which imports nothing of ours.

    pingpong.py CPU serve PORT                   answer one connection after the other, until ended
    pingpong.py CPU ask ADDRESS PORT SECONDS     print how many round trips there were, and their percentiles, as JSON

CPU is the number of the processor to run on. Both ends are Python and cost some ten microseconds, the same for every
path that is compared.
"""

import gc
import json
import os
import socket
import sys
import time

WARM_UP = 200


def serve(port: int) -> None:
    """Answer octets."""
    with socket.create_server(("", port), backlog=4) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while octet := connection.recv(1):
                    connection.send(octet)


def ask(address: str, port: int, duration_s: float) -> list[int]:
    """Return the time of each round trip in nanoseconds, sorted."""
    gc.disable()  # a collection in the middle would be taken for latency
    times_ns = []
    with socket.create_connection((address, port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        for _ in range(WARM_UP):
            connection.send(b"?")
            connection.recv(1)
        end_ns = time.perf_counter_ns() + int(duration_s * 1e9)
        begin_ns = time.perf_counter_ns()
        while begin_ns < end_ns:
            connection.send(b"?")
            connection.recv(1)
            now_ns = time.perf_counter_ns()
            times_ns.append(now_ns - begin_ns)
            begin_ns = now_ns
    return sorted(times_ns)


def main(words: list[str]) -> None:
    """Do what the words say."""
    os.sched_setaffinity(0, {int(words[0])})
    if words[1] == "serve":
        serve(int(words[2]))
    times_ns = ask(words[2], int(words[3]), float(words[4]))
    summary = {
        "count": len(times_ns),
        "p50_us": times_ns[len(times_ns) // 2] / 1000,
        "p99_us": times_ns[len(times_ns) * 99 // 100] / 1000,
    }
    sys.stdout.write(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
