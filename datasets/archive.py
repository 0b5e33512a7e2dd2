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
from datasets.temporary import unfinished

MAX_MEMBERS = 2_000_000  # ImageNet has 1.3 million images
MAX_EMPTY = 1000  # empty files, which take almost no bytes in an archive
MAX_RATIO = 100  # unpacked bytes per archive byte; photographs have 1, text 10
FREE_BYTES = 16 << 20  # bytes allowed in addition, for small archives
MAX_NAME = 1024  # bytes of a path; each component may have 255
MAX_HEADER = 1 << 16  # bytes of a tar header with the next member's name

_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


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


class _Stream:
    """Unpacked bytes of an archive; errors of the unpacker become _Bad."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        """``size`` bytes, or fewer at the end."""
        pieces = []
        try:
            while size and (piece := self.file.read(size)):
                pieces.append(piece)
                size -= len(piece)
        except (*_DAMAGE, RuntimeError, NotImplementedError, MemoryError) as error:
            raise _Bad(f"it is damaged or cut off ({str(error)[:200] or 'no end'})") from error
        return b"".join(pieces)


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
    try:
        with file:
            return fetch_into(target.parent, lambda: _unpack(file, target, sha256))
    except _Bad as bad:
        member_name = f" {_shown(bad.name)}:" if bad.name is not None else ""
        raise DataError(f"{archive}:{member_name} {bad}; nothing was unpacked.") from bad


def _unpack(file: Any, target: Path, sha256: str | None) -> int:
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with unfinished(partial):
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
        self.spend(size)
        if size > self.free:
            raise _Bad(f"it is {size:,} bytes, but the disk has {self.free:,} left", name)
        self.free -= size
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

    def spend(self, size: int) -> None:
        """Count ``size`` bytes before they are unpacked; raises _Bad beyond the limit."""
        self.left -= size
        if self.left < 0:
            raise _Bad(f"it claims to unpack to more than {MAX_RATIO} times its size")


def _pieces(name: str, is_folder: bool) -> list[str]:
    """The components of a relative path; [] for the top folder itself."""
    if not name:
        raise _Bad("it has no name", name)
    if len(name.encode(errors="surrogatepass")) > MAX_NAME:
        raise _Bad("its name is too long", name)
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in name):
        raise _Bad("its name holds what cannot be printed", name)
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
        raise _Bad("its name is not a plain relative path", name)
    pieces = name.split("/")
    if is_folder and not pieces[-1]:
        pieces.pop()
    while pieces and pieces[0] == ".":  # tar writes ./name
        pieces.pop(0)
    if {"", ".", ".."} & set(pieces) or not pieces and not is_folder:
        raise _Bad("its name is not a plain relative path", name)
    if any(len(piece.encode()) > 255 for piece in pieces):
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
                yield from _tar_members(_Stream(stream), limits)
            return
    yield from _tar_members(_Stream(file), limits)


# --- zip ------------------------------------------------------------------------------------------


def _zip_members(file: Any, limits: _Limits) -> Iterator[_Member]:
    try:
        archive = zipfile.ZipFile(file)
        if len(archive.filelist) > MAX_MEMBERS:
            raise _Bad(f"it holds more than {MAX_MEMBERS:,} files and folders")
    except (*_DAMAGE, NotImplementedError) as error:
        raise _Bad(f"it is damaged or cut off ({str(error)[:200]})") from error
    for info in archive.filelist:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        is_folder = name.endswith("/")
        if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
            what = "a symbolic link" if kind == stat.S_IFLNK else "neither file nor folder"
            raise _Bad(f"it is {what}", name)
        if info.flag_bits & 0x2041:
            raise _Bad("it is encrypted", name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Bad(f"it is compressed in an unusual way ({info.compress_type})", name)
        if is_folder and info.file_size:
            raise _Bad("it is a folder with content", name)
        plain = limits.check(name, info.file_size, is_folder)
        if is_folder:
            yield _Member(plain, 0, None)
            continue
        try:
            stream = archive.open(info)
        except (*_DAMAGE, RuntimeError, NotImplementedError) as error:
            raise _Bad(f"it is damaged ({str(error)[:200]})", name) from error
        with stream:
            content = _Stream(stream)
            yield _Member(plain, info.file_size, content)
            if content.read(1):  # reading to the end also verifies the CRC-32
                raise _Bad("it is longer than it says", name)


# --- tar ------------------------------------------------------------------------------------------


def _tar_members(stream: _Stream, limits: _Limits) -> Iterator[_Member]:
    """Yield the members. Not by tarfile, which trusts the sizes of headers and of sparse files."""
    long_name: str | None = None
    long_size: int | None = None
    while True:
        limits.spend(tarfile.BLOCKSIZE)
        block = stream.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0") and len(block) == tarfile.BLOCKSIZE:
            break  # a block of zeros marks the end
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise _Bad(
                "it is cut off, or no tar or zip file"
                if len(block) < 512 or not limits.members
                else "it is damaged"
            ) from error
        if info.size < 0:
            raise _Bad("it has a negative size", info.name)
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            if info.size > MAX_HEADER:
                raise _Bad(f"its header of {info.size:,} bytes is too large", info.name)
            content = _padded(stream, info.size, limits)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.removesuffix(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == tarfile.XHDTYPE:
                long_name, long_size = _pax(content, long_name)
            continue
        name = info.name if long_name is None else long_name
        size = info.size if long_size is None else long_size
        long_name = long_size = None
        is_folder = info.type == tarfile.DIRTYPE
        if not is_folder and info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise _Bad(f"it is {_KINDS.get(info.type, f'of the unknown type {info.type!r}')}", name)
        if is_folder and size:
            raise _Bad("it is a folder with content", name)
        plain = limits.check(name, size, is_folder)
        yield _Member(plain, size, None if is_folder else stream)
        _padded(stream, -size % tarfile.BLOCKSIZE, limits, pad=False)
    while rest := stream.read(1 << 16):  # to the end, where the compressed file's checksum is
        limits.spend(len(rest))
        if rest.strip(b"\0"):
            raise _Bad("there is more after its end")


def _padded(stream: _Stream, size: int, limits: _Limits, pad: bool = True) -> bytes:
    """Read ``size`` bytes and the padding up to a whole block; returns the bytes."""
    whole = math.ceil(size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if pad else size
    limits.spend(whole)
    content = stream.read(whole)
    if len(content) < whole:
        raise _Bad("it is cut off")
    return content[:size]


def _pax(content: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Name and size from a PAX header, which has lines of "LENGTH key=value"."""
    size = None
    while content:
        match = re.match(rb"([0-9]{1,6}) ([^=\n]+)=", content)
        length = int(match[1]) if match else 0
        if not match or not match.end() < length <= len(content) or content[length - 1] != 10:
            raise _Bad("it is damaged (a PAX header)")
        key, value = match[2], content[match.end() : length - 1]
        if key.startswith(b"GNU.sparse"):
            raise _Bad("it holds a sparse file")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        if key == b"size":
            if not re.fullmatch(b"[0-9]{1,18}", value):
                raise _Bad("it is damaged (a PAX header)")
            size = int(value)
        content = content[length:]
    return name, size


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")
