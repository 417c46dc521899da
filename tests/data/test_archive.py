"""Archives with wrong sizes in their headers: read with a limit, or refused with one clear line."""

from __future__ import annotations

import resource
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from opendino.core.errors import BadImage, UserError
from opendino.data.open_source import open_source
from opendino.data.sources.archive import ArchiveSource

_UNPACKED = 208 * 2**20


def lying_zip(path: Path, method: int, said: int) -> Path:
    """A .zip with one member of many zeros, whose central directory says `said` bytes."""
    info = zipfile.ZipInfo("bomb.png")
    info.compress_type = method
    with zipfile.ZipFile(path, "w") as archive, archive.open(info, "w", force_zip64=True) as member:
        for _ in range(_UNPACKED // 2**24):
            member.write(bytes(2**24))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rfind(b"PK\1\2") + 24, said)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("method", "reason"),
    [(zipfile.ZIP_DEFLATED, "CRC"), (zipfile.ZIP_BZIP2, "method 12"), (zipfile.ZIP_LZMA, "method 14")],
)
def test_a_member_never_unpacks_to_more_than_its_list_says(tmp_path: Path, method: int, reason: str) -> None:
    source = open_source(lying_zip(tmp_path / "a.zip", method, 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match=reason):
        source.read(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024, "KiB"


def test_a_member_that_is_less_than_its_list_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"x" * 100)
        archive.filelist[0].file_size = 1000
    with pytest.raises(BadImage, match="ends within"):
        open_source(tmp_path / "a.zip").read(0)


def test_a_list_of_files_that_is_too_long_is_not_read(make: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(30):
            archive.writestr(f"{number:03d}.png", make.png(number))
    assert ArchiveSource(str(tmp_path / "a.zip")).sizes.tolist() == [len(make.png(n)) for n in range(30)]
    with pytest.raises(UserError, match="lists too many files"):
        ArchiveSource(str(tmp_path / "a.zip"), 1000)


def test_tar_members_without_bytes_are_warned_about(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = make.png(1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("b.png", tarfile.REGTYPE),
            ("sparse.png", tarfile.GNUTYPE_SPARSE),
            ("l.png", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "b.png"
            tar.addfile(info)
            if kind != tarfile.LNKTYPE:
                assert tar.fileobj
                tar.fileobj.write(content.ljust(512, b"\0"))
                tar.offset += 512
    source = open_source(tmp_path / "a.tar")
    assert [source.key(i) for i in range(len(source))] == ["b.png", "sparse.png"]
    assert source.read(0) == content
    with pytest.raises(BadImage, match="sparse"):
        source.read(1)
    said = capsys.readouterr().err
    assert "1 images in" in said and "sparse" in said and "links" in said
