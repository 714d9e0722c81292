"""What can be said of programs without a kernel."""

from weavenet.linux.bpf import Program


def test_two_programs_are_the_same_by_instructions_and_maps_and_not_by_number() -> None:
    one = Program("weave_egress", 7, "00ff", (1, 2))
    assert one.fingerprint == Program("weave_egress", 8, "00ff", (1, 2)).fingerprint
    assert one.fingerprint != Program("weave_egress", 7, "00ff", (1, 3)).fingerprint
    assert one.fingerprint != Program("weave_egress", 7, "00fe", (1, 2)).fingerprint
