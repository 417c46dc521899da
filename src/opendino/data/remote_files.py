"""Files in buckets (S3, Google Cloud, Azure) by fsspec, which asks for credentials where its drivers always do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.core.errors import UserError, first_line
from opendino.data.download import Unreachable
from opendino.data.source_files import MAX_BYTES, printable

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "file", "memory")
"""What an address may begin with. fsspec knows more, of which some reach into other files or start programs."""


def is_bucket(name: str) -> bool:
    """Whether a name is an address in a bucket."""
    protocol, mark, _ = name.partition("://")
    return bool(mark) and protocol in PROTOCOLS


def filesystem(address: str) -> Any:
    """The file system for an address, of this process alone.

    Raises:
        UserError: The library, or its driver for this protocol, is missing.
    """
    protocol = address.partition("://")[0]
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise UserError(
            f"{protocol}:// needs a library ({first_line(error)})", 'Install it: pip install "opendino[remote]"'
        ) from None


def listed(address: str) -> dict[str, int]:
    """Path below an address → bytes, of every file there at any depth, sorted.

    Raises:
        UserError: It cannot be listed.
    """
    files = filesystem(address)
    root = files._strip_protocol(address).rstrip("/")
    try:
        found = files.find(root, detail=True)
    except Exception as error:  # drivers and the libraries below them raise many kinds
        raise UserError(
            f"Cannot list {printable(address)}: {first_line(error)}",
            "Check its name and your credentials; for a public bucket on S3 set FSSPEC_S3_ANON=true",
        ) from error
    return {
        path[len(root) + 1 :]: int(about.get("size") or 0)
        for path, about in sorted(found.items())
        if path.startswith(f"{root}/")
    }


def read(files: Any, address: str, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file, up to one more than `most`.

    Raises:
        Unreachable: It cannot be had.
    """
    try:
        return files.cat_file(files._strip_protocol(address), start=0, end=most + 1)
    except Exception as error:  # as above
        raise Unreachable(first_line(error)) from error


def fetch(address: str, path: Path) -> None:
    """Copy a file to a local path.

    Raises:
        Unreachable: It cannot be had.
        UserError: The library is missing.
    """
    files = filesystem(address)
    try:
        files.get_file(files._strip_protocol(address), str(path))
    except Exception as error:  # as above
        raise Unreachable(first_line(error)) from error
