"""Images in one .tar or .zip file, read in place: nothing is unpacked to disk."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, final

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import tar_headers
from opendino.data.source_files import (
    FolderClasses,
    check_size,
    is_file,
    is_hidden,
    is_image,
    log_unsupported,
    no_images,
    printable,
    suffix,
)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile's other methods decompress without a size limit
_MAX_LIST_BYTES = 2**30
_SPARSE = -1  # stands for the size of a sparse file


@final
class ArchiveSource(Source):
    """The images in an archive, in its order; of several members with the same name the last is used.

    The names of the first-level folders are the classes, as for `FolderSource`, after removing the folders that all
    images share.

    Args:
        path: A .zip or an uncompressed .tar.
        max_list_bytes: A .zip with a larger central directory is refused before it is read.

    Attributes:
        sizes: int64 `[images]`, size of each image in bytes; `read` never returns more.

    Raises:
        UserError: The archive cannot be read, is a compressed .tar, or has no images.
    """

    folder_classes = True

    def __init__(self, path: str, max_list_bytes: int = _MAX_LIST_BYTES) -> None:
        self._handle: BinaryIO | zipfile.ZipFile | None = None
        self._pid = 0
        self.path = path
        self._zip = path.lower().endswith(".zip")
        members, others = _read_index(path, self._zip, max_list_bytes)
        if not members:
            raise no_images(f"archive {printable(path)}", others)
        log_unsupported(f"archive {printable(path)}", others)
        self._keys = list(members)
        self._names = [name for name, _, _ in members.values()]
        self._offsets = np.array([offset for _, offset, _ in members.values()], np.int64)  # for .tar only
        self.sizes = np.array([size for *_, size in members.values()], np.int64)
        self._prefix_length = len(_common_folder(self._keys))
        self._classes = FolderClasses.of(key[self._prefix_length :] for key in self._keys)
        self.classes = self._classes.names

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        """Name of the member."""
        return printable(self._keys[index])

    def label(self, index: int) -> int:
        """The class, from the folders in the member's name; -1 if there is none."""
        return self._classes.label(self._keys[index][self._prefix_length :])

    def read(self, index: int) -> bytes:
        """The bytes of a member.

        Raises:
            BadImage: The archive is missing or damaged at this member, or the member is encrypted, larger than 512 MB,
                or compressed by an unsupported method.
        """
        offset, size = int(self._offsets[index]), int(self.sizes[index])
        if size == _SPARSE:
            raise BadImage(tar_headers.SPARSE)
        check_size(size)
        try:
            handle = self._open()
            if isinstance(handle, zipfile.ZipFile):
                data = _read_zip_member(handle, self._names[index], size)
            else:
                data = os.pread(handle.fileno(), size, offset)
        except BadImage:
            raise
        except Exception as error:  # zipfile and its decompressors raise many kinds of errors
            raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error
        if len(data) < size:
            raise BadImage("the archive ends within this member")
        return data

    def _open(self) -> BinaryIO | zipfile.ZipFile:
        """A handle opened by this process: forked processes would share the file position of an inherited one."""
        if self._handle is None or self._pid != os.getpid():
            self._close()
            self._handle = zipfile.ZipFile(self.path) if self._zip else open(self.path, "rb")  # noqa: SIM115
            self._pid = os.getpid()
        return self._handle

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handle": None}

    def __del__(self) -> None:
        self._close()


def _read_index(path: str, is_zip: bool, max_list_bytes: int) -> tuple[dict[str, tuple[str, int, int]], Counter[str]]:
    """List the members: key → (name, offset, size) of every image, and suffix → number of other files."""
    members: dict[str, tuple[str, int, int]] = {}
    others: Counter[str] = Counter()
    try:
        for name, offset, size in _zip_members(path, max_list_bytes) if is_zip else _tar_members(path):
            key = name.removeprefix("./").lstrip("/")
            if any(is_hidden(part) for part in key.split("/") if part not in (".", "..")):
                continue
            if is_image(name):
                members[key] = (name, offset, size)
            else:
                others[suffix(name)] += 1
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"Cannot open {printable(path)}: {error.strerror or error}", "Give one you can read") from error
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise _cannot_read(path, error) from error
    return members, others


def _cannot_read(path: str, error: Exception) -> UserError:
    with open(path, "rb") as file:
        if file.read(6).startswith(_COMPRESSED_MAGIC):
            return UserError(
                f"{printable(path)} is compressed as a whole, so no image can be read without decompressing it",
                f"Unpack it and give the folder: mkdir images && tar -xf '{printable(path)}' -C images",
            )
    return UserError(
        f"{printable(path)} is damaged, cut short or not an archive: {' '.join(str(error).split())}",
        "Copy or download it again, or unpack what is readable and give the folder",
    )


class _LimitedReader(io.BufferedReader):
    """A file that refuses to read more than `limit` bytes at once: zipfile reads the list of all files in one call."""

    def __init__(self, path: str, limit: int) -> None:
        super().__init__(io.FileIO(path))
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(self._limit + 1 if size is None or size < 0 else min(size, self._limit + 1))
        if len(content) > self._limit:
            raise UserError(
                f"The .zip lists too many files: their list takes more than {self._limit / 2**20:,.0f} MB",
                "Unpack it and give the folder",
            )
        return content


def _zip_members(path: str, max_list_bytes: int) -> Iterator[tuple[str, int, int]]:
    with _LimitedReader(path, max_list_bytes) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, 0, info.file_size


def _read_zip_member(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """The bytes of a member of a .zip; at most `size` + 1, even if it decompresses to more."""
    info = archive.getinfo(name)
    if info.compress_type not in _BOUNDED:
        raise BadImage(f"compressed by .zip method {info.compress_type}, which is not supported: pack it with zip -r")
    with archive.open(info) as member:
        return member.read(size + 1)  # one byte past the end makes zipfile check the CRC; read() would have no limit


def _tar_members(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files in a .tar; size `_SPARSE` for sparse files. Warns about what is left out."""
    sparse = links = 0
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if not num_bytes:
            raise ValueError("it is empty")
        for member in tar_headers.members(file.fileno(), num_bytes):
            if member.kind == "file" and not member.name.endswith("/"):  # old archives mark a folder so
                yield member.name, member.offset, member.size
            elif is_image(member.name):
                sparse, links = sparse + (member.kind == "sparse"), links + (member.kind == "link")
                if member.kind == "sparse":
                    yield member.name, member.offset, _SPARSE
    if sparse:
        log.warn(f"{sparse:,} images in {printable(path)} cannot be read: {tar_headers.SPARSE}")
    if links:
        log.warn(f"{links:,} images in {printable(path)} are links without content and are left out")


def _common_folder(keys: list[str]) -> str:
    """The deepest folder that contains all keys, "a/b/" or ""."""
    low, high = min(keys).split("/")[:-1], max(keys).split("/")[:-1]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return "".join(f"{folder}/" for folder, _ in shared)


def matches(data: str) -> bool:
    """Whether DATA is an existing .tar or .zip; also a compressed .tar, which `build` refuses and says what to do."""
    return data.lower().endswith((".tar", ".zip", *_COMPRESSED)) and is_file(data)


def build(data: str) -> ArchiveSource:
    """The source for an archive.

    Raises:
        UserError: The archive cannot be read, is a compressed .tar, or has no images.
    """
    return ArchiveSource(data)
