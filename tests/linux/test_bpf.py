"""What can be said of pins and maps without a kernel."""

from pathlib import Path

import pytest

from weavenet.errors import KernelError
from weavenet.linux.bpf import MapShape, Program, filesystem_of, make_pin_directory, unpin

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
sysfs /sys sysfs rw 0 0
bpf /sys/fs/bpf bpf rw,mode=700 0 0
tmpfs /mnt/with\\040space tmpfs rw 0 0
tmpfs /mnt/twice tmpfs rw 0 0
bpf /mnt/twice bpf rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/sys/fs/bpf", "bpf"),
        ("/sys/fs/bpf/weavenet", "bpf"),
        ("/sys/fs/bpfother", "sysfs"),
        ("/sys/fs", "sysfs"),
        ("/var/lib", "ext4"),
        ("/mnt/with space/deep/er", "tmpfs"),
        ("/mnt/twice/x", "bpf"),
    ],
)
def test_a_directory_is_on_the_file_system_of_the_longest_mount_point_above_it(directory: str, kind: str) -> None:
    assert filesystem_of(Path(directory), MOUNTS) == kind


SHAPE = MapShape(type=1, key_size=4, value_size=8, max_entries=16, flags=0)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (SHAPE, ""),
        (MapShape(2, 4, 8, 16, 0), "its type is 2, but 1 is needed"),
        (MapShape(1, 8, 8, 16, 0), "its key size is 8, but 4 is needed"),
        (MapShape(1, 4, 12, 16, 0), "its value size is 12, but 8 is needed"),
        (MapShape(1, 4, 8, 17, 0), "its max entries is 17, but 16 is needed"),
        (MapShape(1, 4, 8, 16, 1), "its flags is 1, but 0 is needed"),
    ],
)
def test_a_map_that_does_not_fit_says_which_attribute(found: MapShape, text: str) -> None:
    assert found.difference(SHAPE) == text


def test_two_programs_are_the_same_by_instructions_and_maps_and_not_by_number() -> None:
    one = Program("weave_egress", 7, "00ff", (1, 2))
    assert one.fingerprint == Program("weave_egress", 8, "00ff", (1, 2)).fingerprint
    assert one.fingerprint != Program("weave_egress", 7, "00ff", (1, 3)).fingerprint
    assert one.fingerprint != Program("weave_egress", 7, "00fe", (1, 2)).fingerprint


def test_a_place_that_takes_no_pins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="it is not on a bpf file system"):
        make_pin_directory(tmp_path / "pins")


def test_unpinning_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    unpin(tmp_path / "pins")
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "map").touch()
    unpin(tmp_path / "pins")
    assert not (tmp_path / "pins").exists()
