"""Delays of the simulated network that are not drawn in every run."""

from random import Random

from msgspec.structs import replace

from weavenet.address import Address
from weavenet.sim.network import PERFECT, RETRANSMISSION_S, Network

ONE, OTHER = Address(1), Address(2)


class Clock:
    """Remembers after how long what was asked for."""

    now_s = 0.0

    def __init__(self):
        self.delays_s = []

    def after(self, delay_s, call):  # noqa: ARG002
        self.delays_s.append(delay_s)


def carried(network, clock, count=1):
    pipe = network.open_pipe((ONE, 1), (OTHER, 2))
    for _ in range(count):
        network.send_stream(pipe, ONE, b"x")
    return clock.delays_s


def test_a_lost_segment_delays_itself_and_what_is_behind_it():
    clock = Clock()
    network = Network(Random(1), clock, lambda *_: None)
    network.faults = replace(PERFECT, stream_loss=0.05)
    delays_s = carried(network, clock, 400)
    assert delays_s == sorted(delays_s), "order is kept"
    assert max(delays_s) > RETRANSMISSION_S


def test_a_slow_host_is_slow_in_both_directions():
    clock = Clock()
    network = Network(Random(1), clock, lambda *_: None)
    network.slow_s = {OTHER: 0.5}
    carried(network, clock)
    network.send_datagram(OTHER, ONE, lambda: None)
    assert all(delay_s > 0.5 for delay_s in clock.delays_s)
