"""Headers of .tar files: the same members as tarfile, and any size in a header is safe."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.core.errors import UserError
from opendino.data import tar_headers
from opendino.data.open_source import open_source


def raw(name: str, kind: bytes, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def claiming(kind: bytes, field: bytes) -> bytes:
    """A header with a valid checksum and any size field."""
    header = bytearray(tarfile.TarInfo("z.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = field, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def read(path: Path) -> list[tar_headers.Member]:
    with open(path, "rb") as file:
        return list(tar_headers.members(file.fileno(), os.fstat(file.fileno()).st_size))


SIZES = (
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"77777777777\0",
    b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
    b"-7777777777\0",
)


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("kind", [b"0", b"g", b"x", b"L", b"K", b"S", b"V", b"7"])
def test_sizes_beyond_the_file_are_damage(make: Any, tmp_path: Path, kind: bytes, field: bytes) -> None:
    content = raw("a.png", b"0", make.png(1)) + claiming(kind, field) + raw("b.png", b"0", make.png(2)) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match="cut short"):
        read(tmp_path / "a.tar")
    assert len(open_source(f"wds:{tmp_path}/a.tar")) == 1, "what came before is good"
    with pytest.raises(UserError, match="damaged"):
        open_source(tmp_path / "a.tar")


def test_a_link_of_any_size_has_no_content(make: Any, tmp_path: Path) -> None:
    content = raw("a.png", b"0", make.png(1)) + claiming(b"1", SIZES[0]) + raw("b.png", b"0", make.png(2))
    (tmp_path / "a.tar").write_bytes(content)
    assert [(member.name, member.kind) for member in read(tmp_path / "a.tar")] == [
        ("a.png", "file"), ("z.png", "link"), ("b.png", "file"),
    ]  # fmt: skip


def test_a_pax_header_is_gone_through_once() -> None:
    class Counted(bytes):
        taken = 0

        def __getitem__(self, key: Any) -> Any:
            piece = bytes.__getitem__(self, key)
            Counted.taken += len(piece)
            return piece

    record = Counted(b"5 a=\n" * 10_000)
    assert tar_headers._pax_records(record) == {"a": ""}
    assert Counted.taken <= 2 * len(record)


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_a_header_of_megabytes_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(raw("h", kind, b"5 a=\n" * 400_000) + raw("a.png", b"0", b"x"))
    with pytest.raises(ValueError, match="a header of 2000000 bytes"):
        read(tmp_path / "a.tar")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.binary(max_size=300)
    | st.lists(st.tuples(st.integers(-9, 10**12), st.text(max_size=9))).map(
        lambda pairs: b"".join(b"%d %s\n" % (number, text.encode()) for number, text in pairs)
    )
)
def test_any_record_of_properties_ends(record: bytes) -> None:
    tar_headers._pax_records(record)


@pytest.mark.parametrize("layout", ["gnu", "posix"])
def test_sparse_files_of_gnu_tar(make: Any, tmp_path: Path, layout: str) -> None:
    for name in ("a", "c"):
        (tmp_path / f"{name}.png").write_bytes(make.png(1))
    with open(tmp_path / "b.png", "wb") as file:
        for hole in range(30):  # more than the header has room for
            file.seek(hole * 2**17)
            file.write(b"x" * 4096)
        file.truncate(2**22)
    names = ["a.png", "b.png", "c.png"]
    subprocess.run(["tar", "-Sc", f"--format={layout}", "-f", "x.tar", *names], check=True, cwd=tmp_path)
    found = read(tmp_path / "x.tar")
    assert [(member.name, member.kind) for member in found] == [
        ("a.png", "file"), ("b.png", "sparse"), ("c.png", "file"),
    ]  # fmt: skip
    assert (tmp_path / "x.tar").read_bytes()[found[2].offset :][: found[2].size] == make.png(1)
