"""Unpack untrusted archives: only regular files and folders, and only into the target folder."""

import bz2
import gzip
import hashlib
import lzma
import math
import os
import re
import secrets
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DataError
from datasets.images import check_file
from datasets.memory import fetch_into

MAX_MEMBERS = 2_000_000  # ImageNet has 1.3 million images
MAX_EMPTY = 1000  # empty files, which take almost no bytes in an archive
MAX_RATIO = 100  # unpacked bytes per archive byte; photographs have 1, text 10
FREE_BYTES = 16 << 20  # bytes allowed in addition, for small archives
MAX_NAME = 1024  # bytes of a path; each component may have 255
MAX_HEADER = 1 << 16  # bytes that tar has before a member's content

_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_DAMAGE = (  # what the unpackers raise; zipfile raises RuntimeError for what is encrypted
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError),
)
_LINKS = {stat.S_IFLNK: "a symbolic link", tarfile.SYMTYPE: "a symbolic link"}
_TOO_LARGE = f"it unpacks to more than {MAX_RATIO} times its size"


class _Bad(Exception):
    """An archive, or its member ``name``, is refused; the message is a short reason."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.name = name


class _Member(NamedTuple):
    """A file, or a folder if ``content`` is None. Read it before the next member."""

    name: str
    size: int
    content: "_Stream | None"


def unpack(archive: Path, target: Path, sha256: str | None = None) -> int:
    """Unpack a tar (also .gz, .bz2, .xz) or zip file into the new folder ``target``, atomically.

    Returns the number of files. Unpacks into a folder beside ``target``, which is renamed at the
    end. Modes, owners and times in the archive are ignored. Raises DataError for members that are
    not regular files or folders with plain relative names, for damage, for sizes out of proportion,
    for another ``sha256``, and if ``target`` exists; OSError if ``target`` cannot be written.
    """
    if os.path.lexists(target):
        raise DataError(f"{target}: exists already; name a folder that is new.")
    try:
        check_file(archive)
        file = open(archive, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{archive}: cannot be read: {reason}.") from error
    with file:
        return fetch_into(target.parent, lambda: _unpack(archive, file, target, sha256))


def _unpack(archive: Path, file: Any, target: Path, sha256: str | None) -> int:
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        size = os.fstat(file.fileno()).st_size
        if sha256 and (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            raise _Bad(f"its SHA-256 is {found}, not {sha256}")
        partial.mkdir(parents=True)
        limits = _Limits(FREE_BYTES + MAX_RATIO * size, shutil.disk_usage(partial).free)
        for member in _members(file, limits):
            _write(partial, member)
        if not limits.files:
            raise _Bad("it holds no files")
        partial.rename(target)
    except _Bad as bad:
        member_name = f" {_shown(bad.name)}:" if bad.name is not None else ""
        raise DataError(f"{archive}:{member_name} {bad}; nothing was unpacked.") from bad
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after success it does not exist
    return limits.files


def _write(partial: Path, member: _Member) -> None:
    path = partial / member.name
    if member.content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with open(path, "xb") as file:
        while left:
            piece = member.content.read(min(left, 1 << 20))
            if not piece:
                raise _Bad("it is cut off", member.name)
            file.write(piece)
            left -= len(piece)


class _Limits:
    """The bytes that one archive may still unpack, and the names of its members so far."""

    def __init__(self, unpacked: int, free: int) -> None:
        self.left = unpacked
        self.free = free
        self.members = 0
        self.files = 0
        self.empty = 0
        self.names: dict[str, tuple[str, bool]] = {}  # folded name -> (name, is_folder)

    def check(self, name: str, size: int, is_folder: bool) -> str:
        """The normalised name of a member; raises _Bad if it must not be unpacked."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise _Bad(f"it holds more than {MAX_MEMBERS:,} files and folders")
        if size < 0 or is_folder and size:
            raise _Bad(f"it is a {'folder' if is_folder else 'file'} of {size:,} bytes", name)
        if size > self.free:
            raise _Bad(f"it is {size:,} bytes, but the disk has {self.free:,} left", name)
        self.free -= size
        if size > self.left:
            raise _Bad(_TOO_LARGE)
        pieces, before = _pieces(name, is_folder), len(self.names)
        for length in range(1, len(pieces) + 1):
            plain, inner = "/".join(pieces[:length]), length < len(pieces)
            key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain).casefold())
            first, was_folder = self.names.setdefault(key, (plain, inner or is_folder))
            if first != plain:
                raise _Bad(f"it differs from {_shown(first)} in case or accents only", name)
            if was_folder != (inner or is_folder):
                raise _Bad("it is both a file and a folder", name)
        if not is_folder:
            self.files += 1
            self.empty += not size
            if self.empty > MAX_EMPTY:
                raise _Bad(f"it holds more than {MAX_EMPTY:,} empty files")
            if len(self.names) == before:
                raise _Bad("it is there twice", name)
        return "/".join(pieces)


class _Stream:
    """Unpacked bytes of an archive, read only forwards; errors of the unpacker become _Bad."""

    def __init__(self, file: Any, limits: _Limits) -> None:
        self.file, self.limits = file, limits
        self.position = 0
        self.most: float = math.inf  # bytes that may still be read
        self.last = b""  # what was read last

    def read(self, size: int) -> bytes:
        """``size`` bytes, or fewer at the end."""
        if not 0 <= size <= self.most:
            raise _Bad("it has a header that is too large")
        pieces = []
        try:
            while size and (piece := self.file.read(size)):
                pieces.append(piece)
                size -= len(piece)
                self.limits.left -= len(piece)
                if self.limits.left < 0:
                    raise _Bad(_TOO_LARGE)
        except _DAMAGE as error:
            raise _damaged(error) from error
        self.last = b"".join(pieces)
        self.position += len(self.last)
        self.most -= len(self.last)
        return self.last

    def tell(self) -> int:
        """The number of bytes read so far."""
        return self.position

    def seek(self, position: int) -> None:
        """Read to ``position``, or to the end if that comes first."""
        while self.position < position and self.read(min(position - self.position, 1 << 16)):
            pass


def _damaged(error: Exception, name: str | None = None) -> _Bad:
    return _Bad(f"it is damaged, cut off or no archive ({str(error)[:200] or 'no end'})", name)


def _pieces(name: str, is_folder: bool) -> list[str]:
    """The components of a relative path; [] for the top folder itself."""
    pieces = name.split("/")
    if is_folder and not pieces[-1]:
        pieces.pop()
    while pieces and pieces[0] == ".":  # tar writes ./name
        pieces.pop(0)
    if (
        not name
        or any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in name)
        or "\\" in name
        or re.match("[A-Za-z]:", name)
        or {"", ".", ".."} & set(pieces)
        or not (pieces or is_folder)
    ):
        raise _Bad("its name is not a plain relative path", name)
    if len(name.encode()) > MAX_NAME or any(len(piece.encode()) > 255 for piece in pieces):
        raise _Bad("its name is too long", name)
    return pieces


def _members(file: Any, limits: _Limits) -> Iterator[_Member]:
    head = file.seek(0) or file.read(6)
    file.seek(0)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _zip_members(file, limits)
        return
    for magic, opened in _PACKED.items():
        if head.startswith(magic):
            with opened(file) as stream:
                yield from _tar_members(_Stream(stream, limits), limits)
            return
    yield from _tar_members(_Stream(file, limits), limits)


def _zip_members(file: Any, limits: _Limits) -> Iterator[_Member]:
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise _damaged(error) from error
    if len(archive.filelist) > MAX_MEMBERS:
        raise _Bad(f"it holds more than {MAX_MEMBERS:,} files and folders")
    for info in archive.filelist:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        is_folder = name.endswith("/")
        if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
            raise _Bad(f"it is {_LINKS.get(kind, 'neither file nor folder')}", name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Bad(f"it is compressed in an unusual way ({info.compress_type})", name)
        plain = limits.check(name, info.file_size, is_folder)
        if is_folder:
            yield _Member(plain, 0, None)
            continue
        try:
            stream = archive.open(info)
        except _DAMAGE as error:  # also: it is encrypted
            raise _damaged(error, name) from error
        with stream:
            content = _Stream(stream, limits)
            yield _Member(plain, info.file_size, content)
            if content.read(1):  # reading to the end also verifies the CRC-32
                raise _Bad("it is longer than it says", name)


def _tar_members(stream: Any, limits: _Limits) -> Iterator[_Member]:
    """Yield the members. tarfile only reads the headers, each of at most MAX_HEADER bytes."""
    archive: Any = None
    while True:
        stream.most = MAX_HEADER
        try:
            archive = archive or tarfile.TarFile(fileobj=stream, encoding="utf-8")
            info = archive.next()
        except _DAMAGE as error:
            raise _damaged(error) from error
        stream.most = math.inf
        if info is None:
            break
        archive.members.clear()  # it would keep all headers in memory
        if any(key.startswith("GNU.sparse") for key in info.pax_headers):
            raise _Bad("it is a sparse file", info.name)
        if info.type not in (tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.AREGTYPE):
            raise _Bad(f"it is {_LINKS.get(info.type, 'neither file nor folder')}", info.name)
        plain = limits.check(info.name, info.size, info.isdir())
        yield _Member(plain, info.size, None if info.isdir() else stream)
    # tarfile also takes a damaged header for the end, which is a block of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise _Bad("it is damaged or cut off")
    while rest := stream.read(1 << 16):  # to the end, where the compressed file's checksum is
        if rest.strip(b"\0"):
            raise _Bad("there is more after its end")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")
