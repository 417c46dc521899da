"""Images in a bucket: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`; shards there: `wds:s3://BUCKET/{000..127}.tar`.

Needs the extra `remote` (fsspec and its drivers). The drivers find credentials in the usual places of each cloud; for a
public bucket on S3 set FSSPEC_S3_ANON=true. Each image is one request, in every epoch that does not find it in the
cache: for more than a few thousand images, write shards first with `opendino pack`.
"""

from __future__ import annotations

from collections import Counter
from typing import final

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import remote_files
from opendino.data.download import Unreachable
from opendino.data.source_files import (
    FolderClasses,
    check_size,
    is_hidden,
    is_image,
    log_unsupported,
    no_images,
    printable,
    suffix,
)


@final
class BucketSource(Source):
    """The images below an address, sorted by path, without hidden files. Classes are found as for `FolderSource`.

    Args:
        address: For example `s3://bucket/photos`.

    Raises:
        UserError: The address cannot be listed, or there is no image.
    """

    folder_classes = True

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        found = {
            path: num_bytes
            for path, num_bytes in remote_files.list_files(address).items()
            if not any(map(is_hidden, path.split("/")))
        }
        self._sizes = {path: num_bytes for path, num_bytes in found.items() if is_image(path)}
        others = Counter(suffix(path) for path in found if path not in self._sizes)
        if not self._sizes and ".tar" in others:
            raise UserError(f"{printable(address)} holds shards", f"Give them as wds:{printable(address)}")
        if not self._sizes:
            raise no_images(printable(address), others)
        log_unsupported(printable(address), others)
        self._paths = list(self._sizes)
        self._classes = FolderClasses.of(self._paths)
        self.classes = self._classes.names

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path relative to the address."""
        return printable(self._paths[index])

    def label(self, index: int) -> int:
        """The class, from the folders in the path; -1 if there is none."""
        return self._classes.label(self._paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of the file.

        Raises:
            BadImage: The file cannot be read, is too large, or has changed since it was listed.
        """
        path = self._paths[index]
        size = self._sizes[path]
        check_size(size)
        try:
            data = remote_files.read(f"{self._address}/{path}", size)
        except Unreachable as error:
            raise BadImage(str(error)) from error
        if len(data) != size:
            raise BadImage("the file has changed since it was listed")
        return data


def matches(data: str) -> bool:
    """Whether DATA is the address of a bucket, and not of a .tar shard."""
    return remote_files.is_bucket(data) and not data.lower().endswith(".tar")


def build(data: str) -> BucketSource:
    """The source for an address.

    Raises:
        UserError: fsspec is not installed, or the address is wrong or has no images.
    """
    if not remote_files.is_bucket(data):
        raise UserError(
            f"'{printable(data)}' is not the address of a bucket",
            f"Write {'://…, '.join(remote_files.PROTOCOLS[:7])}://…",
        )
    return BucketSource(data)
