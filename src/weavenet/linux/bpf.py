"""eBPF from Python: load an object file, read and write its maps. The words are the kernel's.

This wraps libbpf through ctypes. Libraries exist (bcc compiles at run time and brings LLVM along; pyroute2 speaks
netlink but not bpf(2)), yet all that is needed is two dozen calls, and libbpf already knows ELF, BTF, relocations and
how older kernels differ.

Nothing is pinned (docs/adr/0015). A program that is attached to a device stays in the kernel, and its maps with it;
from the program's number, which the device tells, its maps are found again. A map that fits is used as it is, with all
it holds, so a restarted agent continues where the last one stopped.

Sources: bpf(2); include/uapi/linux/bpf.h for the layouts of the two info structs; libbpf 1.0 and later.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NewType, NoReturn

import msgspec

from weavenet.errors import KernelError

FileDescriptor = NewType("FileDescriptor", int)

_LIBRARY = "libbpf.so.1"
_NAME_BYTES = 16
_MAP_INFO = struct.Struct("=6I16s")  # type, id, key size, value size, max entries, flags, name
_PROGRAM_INFO = struct.Struct("=2I8s2I2Q8x2IQ16s")  # type, id, tag, ..., uid, count of maps, pointer to map ids, name
_PROGRAM_MAPS_MAX = 64
_VERIFIER_LOG_BYTES = 1 << 20
_VERIFIER_LINES = 12
_BATCH = 1024
_ENTRIES_TYPES = frozenset({1, 2, 9})  # hash, array, LRU hash: of those, entries can be copied
_PER_CPU_TYPES = frozenset({5, 6, 10})  # hash, array, LRU hash; include/uapi/linux/bpf.h, enum bpf_map_type


class _OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts; libbpf goes by `size`, so later fields may be missing."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("removed", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_char_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@cache
def _library() -> ctypes.CDLL:
    """Load libbpf on first use. Raises KernelError if it is not installed."""
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError as error:
        raise KernelError(f"cannot load {_LIBRARY} ({error}); install libbpf1") from error
    for name in ("bpf_object__open_file", "bpf_object__next_map", "bpf_object__next_program", "ring_buffer__new"):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("bpf_map__name", "bpf_program__name"):
        getattr(library, name).restype = ctypes.c_char_p
    library.libbpf_set_print(None)  # what went wrong is in our exceptions, not on stderr
    return library


def _refuse(what: str, number: int) -> NoReturn:
    raise KernelError(f"cannot {what}: {os.strerror(number)}")


def _pointer(what: str, value: int | None) -> ctypes.c_void_p:
    if not value:
        _refuse(what, ctypes.get_errno())
    return ctypes.c_void_p(value)


class MapShape(msgspec.Struct, frozen=True):
    """What must agree for a map to be used by another version of a program."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def _map_info(descriptor: int, what: str) -> tuple[MapShape, int, str]:
    raw = ctypes.create_string_buffer(_MAP_INFO.size)
    length = ctypes.c_uint32(len(raw))
    if _library().bpf_obj_get_info_by_fd(descriptor, raw, ctypes.byref(length)):
        _refuse(f"inspect {what}", ctypes.get_errno())
    kind, number, key_size, value_size, max_entries, flags, name = _MAP_INFO.unpack(raw.raw)
    return MapShape(kind, key_size, value_size, max_entries, flags), number, name.rstrip(b"\0").decode()


class Map:
    """One map, by its open descriptor, which belongs to whoever made this object."""

    def __init__(self, name: str, descriptor: FileDescriptor) -> None:
        """Ask the kernel for the map's shape and number."""
        self.name = name
        self.descriptor = descriptor
        self.shape, self.number, _ = _map_info(descriptor, f"map {name}")
        cells = possible_cpus() if self.shape.type in _PER_CPU_TYPES else 1
        # Each CPU's value starts on eight bytes; user space gets them all, one after the other.
        self.value_bytes = self.shape.value_size if cells == 1 else (self.shape.value_size + 7 & ~7) * cells

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of a key (for a per-CPU map those of all CPUs), or None."""
        assert len(key) == self.shape.key_size
        value = ctypes.create_string_buffer(self.value_bytes)
        if not _library().bpf_map_lookup_elem(self.descriptor, key, value):
            return value.raw
        if ctypes.get_errno() == errno.ENOENT:
            return None
        _refuse(f"look up {key.hex()} in map {self.name}", ctypes.get_errno())

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value of a key; programs see the old or the new value, never a part of each (hash maps)."""
        assert len(key) == self.shape.key_size
        assert len(value) == self.value_bytes
        if _library().bpf_map_update_elem(self.descriptor, key, value, ctypes.c_uint64(0)):
            _refuse(f"update {key.hex()} in map {self.name}", ctypes.get_errno())

    def delete(self, key: bytes) -> bool:
        """Remove a key; False if it was not there."""
        assert len(key) == self.shape.key_size
        if not _library().bpf_map_delete_elem(self.descriptor, key):
            return True
        if ctypes.get_errno() == errno.ENOENT:
            return False
        _refuse(f"delete {key.hex()} from map {self.name}", ctypes.get_errno())

    def update_all(self, entries: Mapping[bytes, bytes]) -> None:
        """Set many values in few system calls (BPF_MAP_UPDATE_BATCH, Linux 5.6)."""
        items = list(entries.items())
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            count = ctypes.c_uint32(len(part))
            keys, values = b"".join(key for key, _ in part), b"".join(value for _, value in part)
            assert len(keys) == len(part) * self.shape.key_size
            assert len(values) == len(part) * self.value_bytes
            if _library().bpf_map_update_batch(self.descriptor, keys, values, ctypes.byref(count), None):
                _refuse(f"update {len(part)} entries in map {self.name}", ctypes.get_errno())

    def delete_all(self, keys: Iterable[bytes]) -> int:
        """Remove many keys, whether there or not; return how many were."""
        return sum(1 for key in keys if self.delete(key))

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all entries (BPF_MAP_LOOKUP_BATCH); of a hash that changes meanwhile some may be missing."""
        found: list[tuple[bytes, bytes]] = []
        size = min(_BATCH, self.shape.max_entries)
        position = ctypes.create_string_buffer(max(self.shape.key_size, 8))
        first = True
        while len(found) < 2 * self.shape.max_entries:
            keys = ctypes.create_string_buffer(size * self.shape.key_size)
            values = ctypes.create_string_buffer(size * self.value_bytes)
            count = ctypes.c_uint32(size)
            failed = _library().bpf_map_lookup_batch(
                self.descriptor, None if first else position, position, keys, values, ctypes.byref(count), None
            )
            number = ctypes.get_errno() if failed else 0
            if number == errno.ENOSPC:  # one bucket of the hash holds more than `size`
                size *= 2
                continue
            if number not in {0, errno.ENOENT}:
                _refuse(f"read map {self.name}", number)
            found += self._split(keys.raw, values.raw, count.value)
            if number == errno.ENOENT:
                return found
            first = False
        raise KernelError(f"cannot read map {self.name}: it changes faster than it can be read")

    def _split(self, keys: bytes, values: bytes, count: int) -> list[tuple[bytes, bytes]]:
        wide, high = self.shape.key_size, self.value_bytes
        return [(keys[i * wide : (i + 1) * wide], values[i * high : (i + 1) * high]) for i in range(count)]


class Program(msgspec.Struct, frozen=True):
    """One loaded program: its number in this kernel, the hash of its instructions, and the maps it is bound to."""

    name: str
    number: int
    tag: str
    maps: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """What two programs have in common that do the same: instructions and maps. The number always differs."""
        return f"{self.tag}/{','.join(str(number) for number in self.maps)}"


def program_of(descriptor: FileDescriptor) -> Program:
    """Describe a program by its descriptor."""
    raw = ctypes.create_string_buffer(_PROGRAM_INFO.size)
    maps = (ctypes.c_uint32 * _PROGRAM_MAPS_MAX)()
    _PROGRAM_INFO.pack_into(raw, 0, 0, 0, b"", 0, 0, 0, 0, 0, len(maps), ctypes.addressof(maps), b"")
    length = ctypes.c_uint32(len(raw))
    if _library().bpf_obj_get_info_by_fd(descriptor, raw, ctypes.byref(length)):
        _refuse("inspect a program", ctypes.get_errno())
    fields = _PROGRAM_INFO.unpack(raw.raw)
    number, tag, count, name = fields[1], fields[2], fields[8], fields[10]
    numbers = tuple(sorted(maps[: min(count, len(maps))]))
    return Program(name.rstrip(b"\0").decode(), number, tag.hex(), numbers)


def program_by_number(number: int) -> Program | None:
    """Describe a program by its number; None if there is none (any more)."""
    descriptor = _library().bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if descriptor < 0:
        if ctypes.get_errno() == errno.ENOENT:
            return None
        _refuse(f"open program {number}", ctypes.get_errno())
    try:
        return program_of(FileDescriptor(descriptor))
    finally:
        os.close(descriptor)


def maps_of_programs(numbers: Iterable[int]) -> dict[str, FileDescriptor]:
    """Open the maps that loaded programs use, by name; who asks closes them. A program that is gone has none.

    Needs CAP_SYS_ADMIN, as all access by number does (bpf(2), BPF_MAP_GET_FD_BY_ID). Raises KernelError.
    """
    opened: dict[str, FileDescriptor] = {}
    try:
        for number in numbers:
            program = program_by_number(number)
            for map_number in program.maps if program is not None else ():
                descriptor = _library().bpf_map_get_fd_by_id(ctypes.c_uint32(map_number))
                if descriptor < 0:
                    _refuse(f"open map {map_number} of program {number}", ctypes.get_errno())
                _, _, name = _map_info(descriptor, f"map {map_number}")
                if name in opened:
                    os.close(descriptor)
                else:
                    opened[name] = FileDescriptor(descriptor)
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(descriptors: Mapping[str, FileDescriptor]) -> None:
    """Close the descriptors of maps."""
    for descriptor in descriptors.values():
        os.close(descriptor)


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    count = int(_library().libbpf_num_possible_cpus())
    if count < 1:
        _refuse("count the CPUs", -count)
    return count


class Object:
    """An object file in the kernel: its maps, and its programs, held by it and by what they are attached to."""

    def __init__(self, path: Path, existing: Mapping[str, FileDescriptor]) -> None:
        """Load the file. Existing maps that fit are used; of others of the same name the new map gets the entries.

        Raises KernelError: no such file, a kernel too old, a program the verifier refuses (with the end of its log).
        """
        self._log = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
        options = _OpenOptions(size=ctypes.sizeof(_OpenOptions), kernel_log_size=len(self._log))
        options.kernel_log_buf = ctypes.cast(self._log, ctypes.c_char_p)
        opened = _library().bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
        self._object: ctypes.c_void_p | None = _pointer(f"open eBPF object {path}", opened)
        try:
            outgrown = self._adopt(existing)
            self._load(path)
            self.maps = {name: Map(name, self._map_descriptor(handle)) for name, handle in self._map_handles()}
            self.programs = {
                name: FileDescriptor(_library().bpf_program__fd(handle)) for name, handle in self._program_handles()
            }
            for name in outgrown:
                _copy(Map(name, existing[name]), self.maps[name])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all descriptors; what is attached stays in the kernel. May be called twice."""
        if self._object is not None:
            _library().bpf_object__close(self._object)
            self._object = None

    def _load(self, path: Path) -> None:
        if _library().bpf_object__load(self._object):
            number = ctypes.get_errno()
            raise KernelError(f"cannot load eBPF object {path}: {os.strerror(number)}{self._verifier()}")

    def _adopt(self, existing: Mapping[str, FileDescriptor]) -> list[str]:
        """Bind the object to maps there are; return the names of those that exist in another shape."""
        outgrown: list[str] = []
        for name, handle in self._map_handles():
            if name not in existing:
                continue
            found, _, _ = _map_info(existing[name], f"map {name}")
            if found != _declared(handle):
                outgrown.append(name)
            elif _library().bpf_map__reuse_fd(handle, existing[name]):
                _refuse(f"use map {name} of the programs in place", ctypes.get_errno())
        return outgrown

    def _map_handles(self) -> Sequence[tuple[str, ctypes.c_void_p]]:
        return self._handles("bpf_object__next_map", "bpf_map__name")

    def _program_handles(self) -> Sequence[tuple[str, ctypes.c_void_p]]:
        return self._handles("bpf_object__next_program", "bpf_program__name")

    def _handles(self, advance: str, name_of: str) -> list[tuple[str, ctypes.c_void_p]]:
        handles: list[tuple[str, ctypes.c_void_p]] = []
        step, name = getattr(_library(), advance), getattr(_library(), name_of)
        at = step(self._object, None)
        while at:
            handle = ctypes.c_void_p(at)
            handles.append((name(handle).decode(), handle))
            at = step(self._object, handle)
        return handles

    @staticmethod
    def _map_descriptor(handle: ctypes.c_void_p) -> FileDescriptor:
        return FileDescriptor(_library().bpf_map__fd(handle))

    def _verifier(self) -> str:
        lines = self._log.value.decode(errors="replace").strip().splitlines()
        return "".join(f"\n  {line}" for line in lines[-_VERIFIER_LINES:])


def _copy(source: Map, target: Map) -> None:
    """Fill a new map with what an older version's holds, where entries have kept their form.

    Until the agent knows better, the new programs then forward as the old ones did.
    """
    if (source.shape.type, source.shape.key_size, source.value_bytes) != (
        target.shape.type,
        target.shape.key_size,
        target.value_bytes,
    ):
        return
    if source.shape.type in _ENTRIES_TYPES:
        target.update_all(dict(source.items()[: target.shape.max_entries]))


def _declared(handle: ctypes.c_void_p) -> MapShape:
    """Return what the object file says of a map."""
    library = _library()
    return MapShape(
        type=int(library.bpf_map__type(handle)),
        key_size=int(library.bpf_map__key_size(handle)),
        value_size=int(library.bpf_map__value_size(handle)),
        max_entries=int(library.bpf_map__max_entries(handle)),
        flags=int(library.bpf_map__map_flags(handle)),
    )


class RingBuffer:
    """The reading end of a ring buffer map."""

    def __init__(self, source: Map) -> None:
        """Map the buffer. What was written before is still there, if nobody read it."""
        self._records: list[bytes] = []
        self._sample = _SAMPLE(self._collect)  # kept: C holds only its address
        made = _library().ring_buffer__new(source.descriptor, self._sample, None, None)
        self._buffer: ctypes.c_void_p | None = _pointer(f"read ring buffer {source.name}", made)

    def _collect(self, _context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return 0

    def fileno(self) -> int:
        """Return a descriptor, that of an epoll, which is readable when there are records."""
        assert self._buffer is not None
        return int(_library().ring_buffer__epoll_fd(self._buffer))

    def read(self) -> list[bytes]:
        """Take all records there are, without waiting."""
        assert self._buffer is not None
        consumed = _library().ring_buffer__consume(self._buffer)
        if consumed < 0:
            _refuse("read a ring buffer", -consumed)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Unmap the buffer. May be called twice."""
        if self._buffer is not None:
            _library().ring_buffer__free(self._buffer)
            self._buffer = None
