"""Files in buckets (S3, Google Cloud, Azure) through fsspec; its drivers find the usual credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.core.errors import UserError, first_line
from opendino.data.download import Unreachable
from opendino.data.source_files import MAX_BYTES, printable

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "file", "memory")
"""Allowed protocols. fsspec has more, but some of them open nested files or start programs."""


def is_bucket(name: str) -> bool:
    """Whether a name is the address of a bucket or of a file in one."""
    protocol, mark, _ = name.partition("://")
    return bool(mark) and protocol in PROTOCOLS


def filesystem(address: str) -> Any:
    """The fsspec file system for an address; fsspec keeps one per process, because connections do not survive a fork.

    Raises:
        UserError: fsspec, or its driver for this protocol, is not installed.
    """
    protocol = address.partition("://")[0]
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise UserError(
            f"{protocol}:// needs a library ({first_line(error)})", 'Install it: pip install "opendino[remote]"'
        ) from None


def list_files(address: str) -> dict[str, int]:
    """List all files below an address, at any depth: path relative to the address → size in bytes, sorted by path.

    Raises:
        UserError: The address cannot be listed.
    """
    files = filesystem(address)
    root = files._strip_protocol(address).rstrip("/")
    try:
        found = files.find(root, detail=True)
    except Exception as error:  # drivers and their libraries raise many kinds of errors
        raise UserError(
            f"Cannot list {printable(address)}: {first_line(error)}",
            "Check its name and your credentials; for a public bucket on S3 set FSSPEC_S3_ANON=true",
        ) from error
    return {
        path[len(root) + 1 :]: int(about.get("size") or 0)
        for path, about in sorted(found.items())
        if path.startswith(f"{root}/")
    }


def read(address: str, most: int = MAX_BYTES) -> bytes:
    """Read a file; at most `most` + 1 bytes, so that the caller notices a larger file.

    Raises:
        Unreachable: The file cannot be read.
        UserError: fsspec, or its driver for this protocol, is not installed.
    """
    files = filesystem(address)
    try:
        return files.cat_file(files._strip_protocol(address), start=0, end=most + 1)
    except Exception as error:  # as above
        raise Unreachable(first_line(error)) from error


def fetch(address: str, path: Path) -> None:
    """Download a file to a local path.

    Raises:
        Unreachable: The file cannot be read.
        UserError: fsspec, or its driver for this protocol, is not installed.
    """
    files = filesystem(address)
    try:
        files.get_file(files._strip_protocol(address), str(path))
    except Exception as error:  # as above
        raise Unreachable(first_line(error)) from error
