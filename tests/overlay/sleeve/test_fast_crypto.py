"""Sealing under derived keys: each datagram once, each key for its direction and epoch, no number used twice."""

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from weavenet.overlay.sleeve.fast_crypto import EPOCH_BITS, FastOpener, FastSealer, derive_key

KEY = bytes(range(32))
EPOCH = 1 << EPOCH_BITS


def opened(opener: FastOpener, sealed: bytes) -> bytes | None:
    return opener.open(memoryview(sealed))


def test_what_one_end_seals_the_other_opens_once() -> None:
    sealer, opener = FastSealer(KEY, dialled=True), FastOpener(KEY, dialled=False)
    sealed = [sealer.seal(bytes([n])) for n in range(5)]
    assert [opened(opener, one) for one in reversed(sealed)] == [bytes([n]) for n in reversed(range(5))]
    assert [opened(opener, one) for one in sealed] == [b""] * 5, "seen before, and genuine"


def test_nothing_is_sealed_with_the_session_key_itself_nor_twice_with_one_key_and_nonce() -> None:
    keys = {derive_key(KEY, from_dialler=way, epoch=epoch) for way in (False, True) for epoch in range(4)}
    assert len(keys) == 8
    assert KEY not in keys
    sealer = FastSealer(KEY, dialled=True, first=EPOCH - 2)
    counters = [sealer.seal(b"x")[:8] for _ in range(4)]
    assert counters == [n.to_bytes(8, "big") for n in range(EPOCH - 2, EPOCH + 2)]


def test_the_layout_is_that_of_the_docstring() -> None:
    sealed = FastSealer(KEY, dialled=True, first=EPOCH + 5).seal(b"records")
    key = derive_key(KEY, from_dialler=True, epoch=1)
    assert AESGCM(key).decrypt(bytes(4) + sealed[:8], sealed[8:], None) == b"records"


def test_an_end_does_not_take_what_it_sealed_itself() -> None:
    assert opened(FastOpener(KEY, dialled=True), FastSealer(KEY, dialled=True).seal(b"x")) is None


def test_counting_goes_on_from_epoch_to_epoch_and_back_by_one() -> None:
    opener = FastOpener(KEY, dialled=False)
    for first in range(0, 4 * EPOCH, EPOCH):
        late = FastSealer(KEY, dialled=True, first=first + EPOCH - 1).seal(b"late")
        assert opened(opener, FastSealer(KEY, dialled=True, first=first + 1).seal(b"x")) == b"x"
        assert opened(opener, FastSealer(KEY, dialled=True, first=first + EPOCH).seal(b"y")) == b"y"
        assert opened(opener, late) == b"late"
    assert len(opener._aeads) <= 3


def test_rubbish_of_a_far_epoch_costs_no_derivation() -> None:
    opener = FastOpener(KEY, dialled=False)
    far = FastSealer(KEY, dialled=True, first=2 * EPOCH).seal(b"x")
    before = opener._aeads
    assert opener.open(memoryview(far)) is None
    assert opener._aeads is before
    assert before == {}


@given(st.binary(max_size=60))
def test_rubbish_is_not_genuine(sealed: bytes) -> None:
    assert FastOpener(KEY, dialled=False).open(memoryview(sealed)) is None


@given(st.integers(0, 47), st.integers(1, 255))
def test_one_changed_bit_anywhere_and_it_is_not_genuine(where: int, change: int) -> None:
    sealed = bytearray(FastSealer(KEY, dialled=True).seal(bytes(24)))
    sealed[where] ^= change
    assert FastOpener(KEY, dialled=False).open(memoryview(sealed)) is None
