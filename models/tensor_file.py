"""The one place that opens files of tensors. It checks them first and executes nothing in them.

``weights_only=True`` runs no code from a file, but trusts its numbers: a file of a kilobyte may
request a terabyte of memory, or nest tuples until the interpreter's stack overflows. So the zip and
its pickle are first parsed here, strictly and only as data. Accepted are numbers, text, lists,
tuples, dicts, and dense tensors whose values are all in the file.
"""

import itertools
import math
import os
import pickletools
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch

MAX_PICKLE = 16 << 20  # bytes; VGG16 with its optimizer's state needs 20 thousand
MAX_STEPS = 500_000  # pickle opcodes; a tensor needs about 30
MAX_MEMBERS = 50_000  # of the zip; a tensor needs one
MAX_SMALL = 1024  # bytes; a member that is neither the pickle nor a tensor
MAX_DEPTH = 64  # nested lists, tuples and dicts
MAX_VALUES = 1_000_000  # counted at each use: [a, a] with a = [b, b], b = [c, c] is eight
MAX_REUSE = 16  # times the file's size: all tensors together; tensors may share bytes

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of files before PyTorch 1.6
_CONVERT = """python -c "import torch; torch.save(torch.load('OLD', weights_only=True), 'NEW')\""""

_END = struct.Struct("<4s4H2LH")  # the zip's last 22 bytes
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_RECORDS = {
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}
_ITEM_SIZES = {
    f"torch {name}Storage": size
    for size, names in {
        1: ("Bool", "Byte", "Char"),
        2: ("Half", "BFloat16", "Short"),
        4: ("Float", "Int"),
        8: ("Double", "Long", "ComplexFloat"),
        16: ("ComplexDouble",),
    }.items()
    for name in names
}


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote to ``path``: plain values and dense tensors, on the CPU.

    Raises FileNotFoundError, and ValueError with one sentence for everything else that cannot or
    must not be read: damage, objects, code, tensors larger than their bytes in the file.
    """
    # Opened once, so that the checked file is the one loaded. O_NONBLOCK: do not wait for a FIFO.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _Refused("it is not a regular file")
            members = _members(file, status.st_size)
            _Machine(members, status.st_size).run(_content_of(file, members["data.pkl"]))
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except (FileNotFoundError, MemoryError):
        raise  # MemoryError is about this machine, not about the file
    except _Refused as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # a damaged file can raise almost any type
        if "you tried to allocate" in str(error):  # torch's own MemoryError
            raise MemoryError(f"not enough memory to read {os.fspath(path)}") from None
        # Not torch's message: it advises weights_only=False, which would run the file's code.
        reason = f"it is damaged ({type(error).__name__})"
    raise ValueError(f"{os.fspath(path)} cannot be read: {reason}")


class _Refused(ValueError):
    """A file is refused; the message continues the sentence "PATH cannot be read: "."""


class _Member(NamedTuple):
    """A file in the zip, stored uncompressed from byte ``start`` on."""

    start: int
    size: int
    crc: int


# --- the zip --------------------------------------------------------------------------------------


def _members(file: IO[bytes], size: int) -> dict[str, _Member]:
    """The zip's members by name, without their common folder.

    Accepts only the form that torch writes, so that every zip reader sees the same content: no gaps
    in the directory, no comment, no compression, no repeated names, no overlapping members.
    """
    if _read(file, 0, min(size, len(_LEGACY))) == _LEGACY:
        raise _Refused(f"it has the form of before PyTorch 1.6; convert it: {_CONVERT}")
    if not size or size < _END.size or _read(file, 0, 4) != b"PK\x03\x04":
        raise _Refused("it is no file of torch.save" if size else "it is empty")
    found: dict[str, _Member] = {}
    folders, spans = set(), []
    end, entries = _directory(file, size)
    for name, header, member in entries:
        folder, _, rest = name.partition("/")
        folders.add(folder)
        if folder in ("", ".", "..") or not name.isprintable() or len(folders) > 1:
            raise _Refused(f"its member {_short(name)} is not where torch.save puts it")
        if rest in found:
            raise _Refused(f"its member {_short(name)} is there twice")
        if rest != "data.pkl" and not _is_key(rest.removeprefix("data/"), rest):
            if rest not in _RECORDS:
                program = rest == "constants.pkl" or rest.startswith("code/")
                what = "a TorchScript program" if program else f"{_short(name)}, no part of weights"
                raise _Refused(f"it holds {what}")
            if member.size > MAX_SMALL:
                raise _Refused(f"its member {_short(name)} is too large")
            _content_of(file, member)  # checks the CRC-32
        found[rest] = member
        spans.append((header, member.start, member.start + member.size))
    spans.sort()
    for (_, _, before), (header, _, _) in zip(spans, [*spans[1:], (end, end, end)], strict=True):
        if before > header:
            raise _Refused("its members overlap")
    if "data.pkl" not in found:
        raise _Refused("it holds no data.pkl: it is a zip, but no file of torch.save")
    if found["data.pkl"].size > MAX_PICKLE:
        raise _Refused(f"its data.pkl is larger than {MAX_PICKLE >> 20} MiB")
    return found


def _directory(file: IO[bytes], size: int) -> tuple[int, Iterator[tuple[str, int, _Member]]]:
    """Offset of the zip's directory, and its entries: name, offset of the local header, member."""
    place = size - _END.size
    mark, disk, disk2, here, count, length, start, comment = _END.unpack(_read(file, place, 22))
    if mark != b"PK\x05\x06" or disk or disk2 or here != count or comment:
        raise _Refused("it is cut off, or its end is damaged")
    if place >= _LOCATOR.size + _END64.size:
        locator = _LOCATOR.unpack(_read(file, place - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            place -= _LOCATOR.size + _END64.size
            fields = _END64.unpack(_read(file, place, _END64.size))
            if locator[1:] != (0, place, 1) or fields[:2] != (b"PK\x06\x06", 44):
                raise _Refused("it is cut off, or its end is damaged")
            disk, disk2, here, count, length, start = fields[4:]
            if disk or disk2 or here != count:
                raise _Refused("it is one of several parts")
    if start + length != place:
        raise _Refused("its directory is not where it says")
    if count > MAX_MEMBERS:
        raise _Refused(f"it has {count:,} members; {MAX_MEMBERS:,} are allowed")
    if length > count * (_ENTRY.size + 1024):
        raise _Refused("its directory is damaged")
    return start, _entries(file, _read(file, start, length), count)


def _entries(file: IO[bytes], directory: bytes, count: int) -> Iterator[tuple[str, int, _Member]]:
    at = 0
    for _ in range(count):
        entry = _ENTRY.unpack_from(directory, at)
        flags, method, crc = entry[3], entry[4], entry[7]
        packed, unpacked, name_length, extra_length, comment, disk = entry[8:14]
        header = entry[-1]
        at += _ENTRY.size
        name = directory[at : at + name_length].decode("utf-8", "strict")
        wide = _zip64(directory[at + name_length : at + name_length + extra_length])
        unpacked, packed, header = (
            next(wide) if value == 0xFFFFFFFF else value for value in (unpacked, packed, header)
        )
        at += name_length + extra_length + comment
        if entry[0] != b"PK\x01\x02" or at > len(directory) or disk:
            raise _Refused("its directory is damaged")
        if flags & 0x2061:
            raise _Refused(f"its member {_short(name)} is encrypted")
        if method or packed != unpacked:
            raise _Refused(
                f"its member {_short(name)} is compressed; torch.save stores it as it is"
            )
        local = _LOCAL.unpack(_read(file, header, _LOCAL.size))
        own = _read(file, header + _LOCAL.size, local[9])
        if local[0] != b"PK\x03\x04" or local[3] or own != name.encode():
            raise _Refused(f"its member {_short(name)} has two descriptions that differ")
        start = header + _LOCAL.size + local[9] + local[10]
        yield name, header, _Member(start, unpacked, crc)
    if at != len(directory):
        raise _Refused("its directory is damaged")


def _zip64(extra: bytes) -> Iterator[int]:
    """Yield the 64-bit numbers of an extra field; raise _Refused if more are needed."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            yield from struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8])
        extra = extra[4 + length :]
    raise _Refused("its directory is damaged")


def _read(file: IO[bytes], place: int, length: int) -> bytes:
    file.seek(place)
    content = file.read(length)
    if len(content) != length:
        raise _Refused("it is cut off")
    return content


def _content_of(file: IO[bytes], member: _Member) -> bytes:
    content = _read(file, member.start, member.size)
    if zlib.crc32(content) != member.crc:
        raise _Refused("it is damaged (its check sum differs)")
    return content


def _is_key(text: str, path: str) -> bool:
    return path.startswith("data/") and len(text) <= 9 and text.isascii() and text.isdigit()


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


# --- the pickle -----------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Value:
    """Description of a list, tuple, dict or tensor, or of something a tensor is made from.

    ``count`` and ``nbytes`` include everything inside, counted at each use. ``raw`` names a type or
    function inside, if any; only tensors may be made from these. A value that is ``used`` inside
    another may not change any more, so that no value can contain itself.
    """

    kind: str
    content: Any = None
    depth: int = 1
    count: int = 1
    nbytes: int = 0
    raw: str = ""
    used: bool = False


class _Machine:
    """Runs a pickle's opcodes on descriptions, without making any object of the pickle."""

    def __init__(self, members: dict[str, _Member], file_size: int) -> None:
        self.members = members
        self.most_bytes = MAX_REUSE * file_size
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> None:
        """Raise _Refused, or another error for damage, unless all values are accepted ones."""
        # Counted first: to parse the steps is three times faster than to run them.
        counted = itertools.islice(pickletools.genops(content), MAX_STEPS + 1)
        if sum(1 for _ in counted) > MAX_STEPS:
            raise _Refused(f"its pickle takes more than {MAX_STEPS:,} steps")
        steps: Any = pickletools.genops(content)
        for opcode, argument, place in steps:
            name = opcode.name
            if name in _VALUES:
                self.stack.append(_VALUES[name](argument))
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name == "MARK":
                self.marked.append(self.stack)
                self.stack = []
            elif name in _STEPS:
                _STEPS[name](self)
            elif name == "STOP":
                (result,) = self.stack
                if self.marked or place + 1 != len(content):
                    raise _Refused("its pickle does not end where it should")
                self.put(_Value("list"), [result])
            elif (name, argument, place) != ("PROTO", 2, 0):
                raise _Refused(f"its pickle uses {name}, which torch.save does not")

    def marked_items(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def last_items(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise _Refused("its pickle is damaged")
        del self.stack[-count:]
        return items

    def put(self, target: _Value, items: list[Any]) -> None:
        """Add the counts of ``items`` to ``target``, and mark them as used."""
        for item in items:
            if isinstance(item, _Value):
                item.used = True
                target.depth = max(target.depth, item.depth + 1)
                target.count += item.count
                target.nbytes += item.nbytes
                target.raw = target.raw or item.raw
            else:
                target.count += 1
        if target.used:
            raise _Refused("its pickle changes what it has already used")
        if target.raw and target.kind != "tuple":
            raise _Refused(f"it holds {target.raw}, which is neither a value nor a tensor")
        if target.depth > MAX_DEPTH:
            raise _Refused(f"its values are nested deeper than {MAX_DEPTH}")
        if target.count > MAX_VALUES:
            raise _Refused(f"it holds more than {MAX_VALUES:,} values")
        if target.nbytes > self.most_bytes:
            raise _Refused("its tensors are many times larger than the file")

    def tuple(self, items: list[Any]) -> None:
        made = _Value("tuple", items)
        self.put(made, items)
        self.stack.append(made)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not _is(target, "list"):
            raise _Refused("its pickle appends to what is no list")
        self.put(target, items)

    def set_items(self, items: list[Any]) -> None:
        target, keys, values = self.stack[-1], items[::2], items[1::2]
        if not _is(target, "dict", "OrderedDict") or len(keys) != len(values):
            raise _Refused("its pickle sets items of what is no dict")
        for key in keys:  # other keys may hash for ever, or overflow the stack
            if key is not None and type(key) not in (str, int, float, bool):
                raise _Refused("it holds a dict whose keys are neither text nor numbers")
            if isinstance(key, str) and not key.isprintable():
                raise _Refused(f"it holds the key {_short(key)}, which cannot be printed")
        self.put(target, values)
        target.content.update(zip(keys, values, strict=True))

    def storage(self) -> None:
        """Bytes of a tensor: ("storage", type, key of the zip member, device, element count)."""
        (identity,) = self.last_items(1)
        word, kind, key, device, length = identity.content
        size = _ITEM_SIZES.get(kind.content if _is(kind, "name") else "", 0)
        known = word == "storage" and size and type(device) is str and type(length) is int
        if not known or type(key) is not str or not _is_key(key, "data/"):
            raise _Refused("it holds a tensor of no known kind")
        member = self.members.get(f"data/{key}")
        if member is None:
            raise _Refused(f"the bytes of one of its tensors (data/{key}) are missing")
        if member.size != length * size:
            raise _Refused(f"data/{key} has {member.size:,} bytes, but its tensor says otherwise")
        self.stack.append(_Value("storage", (length, size), raw="the bytes of a tensor"))

    def reduce(self) -> None:
        function, arguments = self.last_items(2)
        if not _is(function, "name") or not _is(arguments, "tuple"):
            raise _Refused("its pickle calls what is no function")
        make = _FUNCTIONS.get(function.content)
        if make is None:
            raise _Refused(f"its pickle calls {function.raw}")
        self.stack.append(make(*arguments.content))

    def build(self) -> None:
        """Version numbers on a state_dict: {"_metadata": {layer: {"version": 2}}}."""
        target, state = self.stack[-2], self.stack.pop()
        layers: Any = state.content.get("_metadata") if _is(state, "dict") else None
        if (
            not _is(target, "OrderedDict")
            or not _is(layers, "dict", "OrderedDict")
            or len(state.content) > 1
            or not all(_is(marks, "dict") for marks in layers.content.values())
            or not all(
                mark is None or type(mark) in (int, bool)
                for marks in layers.content.values()
                for mark in marks.content.values()
            )
        ):
            raise _Refused("it gives attributes to what is no state_dict")
        self.put(target, [state])


def _is(value: Any, *kinds: str) -> bool:
    return isinstance(value, _Value) and value.kind in kinds


def _no_hooks(value: Any) -> bool:
    return _is(value, "OrderedDict") and not value.content


def _text(text: str) -> str:
    text.encode()  # raises for half a surrogate pair, which cannot be printed
    return text


def _name(name: str) -> _Value:
    if name not in _ITEM_SIZES and name not in _FUNCTIONS:
        dotted = _short(name.replace(" ", "."))
        raise _Refused(f"it holds {dotted}, which is neither a value nor a tensor")
    return _Value("name", name, raw=name.replace(" ", "."))


def _make_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
) -> _Value:
    """A tensor whose elements all lie in its storage, and which has no more elements than that."""
    if not _is(storage, "storage") or not _is(size, "tuple") or not _is(stride, "tuple"):
        raise _Refused("it holds a tensor of no known kind")
    numbers = [offset, *size.content, *stride.content]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise _Refused("it holds a tensor of an impossible shape")
    if type(requires_grad) is not bool or not _no_hooks(hooks):
        raise _Refused("it holds a tensor with hooks")
    (length, item_size), shape, steps = storage.content, size.content, stride.content
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    fits = last < length and elements <= length if elements else offset <= length
    if len(shape) > 32 or not fits or math.prod(max(n, 1) for n in shape) >= 2**62:
        raise _Refused(
            f"it holds a tensor of shape {_short(str(tuple(shape)))}, but not its values"
        )
    return _Value("tensor", nbytes=elements * item_size)


def _make_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> _Value:
    if not _is(tensor, "tensor") or type(requires_grad) is not bool or not _no_hooks(hooks):
        raise _Refused("it holds a parameter of no known kind")
    return _Value("tensor", nbytes=tensor.nbytes)


def _make_bytes(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise _Refused("its pickle calls _codecs.encode")
    return text.encode("latin1")


def _make_size(sizes: Any) -> _Value:
    if not _is(sizes, "tuple") or not all(type(size) is int for size in sizes.content):
        raise _Refused("its pickle calls torch.Size")
    return _Value("tuple", sizes.content, count=sizes.count)


def _make_counter(counts: Any) -> _Value:  # in the state of MultiStepLR
    if not _is(counts, "dict") or not all(type(n) is int for n in counts.content.values()):
        raise _Refused("its pickle calls collections.Counter")
    return _Value("dict", counts.content, count=counts.count)


# torch calls no other functions. Here each makes a description of what torch will make.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: _Value("OrderedDict", {}),
    "collections Counter": _make_counter,
    "torch Size": _make_size,
    "torch._utils _rebuild_tensor_v2": _make_tensor,
    "torch._utils _rebuild_parameter": _make_parameter,
    "_codecs encode": _make_bytes,
}
_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: _Value("tuple", []),
    "EMPTY_LIST": lambda _: _Value("list"),
    "EMPTY_DICT": lambda _: _Value("dict", {}),
    "BINUNICODE": _text,
    "GLOBAL": _name,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), lambda value: value),
}
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "TUPLE": lambda machine: machine.tuple(machine.marked_items()),
    "TUPLE1": lambda machine: machine.tuple(machine.last_items(1)),
    "TUPLE2": lambda machine: machine.tuple(machine.last_items(2)),
    "TUPLE3": lambda machine: machine.tuple(machine.last_items(3)),
    "APPEND": lambda machine: machine.extend(machine.last_items(1)),
    "APPENDS": lambda machine: machine.extend(machine.marked_items()),
    "SETITEM": lambda machine: machine.set_items(machine.last_items(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.marked_items()),
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
