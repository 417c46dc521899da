"""`opendino embed --watch`: new images are added round by round, compared with the others, and Ctrl-C ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import model_folder, noise_folder, noise_image, small_vit

from opendino.cli import embed_watch, main
from opendino.embeddings.lance_table import LanceTable

pytest.importorskip("lancedb")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_folder(tmp_path / "model", small_vit())


def rounds(monkeypatch: pytest.MonkeyPatch, *arrivals: object) -> None:
    """What happens in each pause; then Ctrl-C."""
    left = list(arrivals)

    def sleep(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()  # type: ignore[operator]

    monkeypatch.setattr(embed_watch.time, "sleep", sleep)


def test_new_images_are_added_and_compared(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, moved = noise_folder(tmp_path / "photos", 24), tmp_path / "elsewhere"
    bytes_read = (photos / "0.png").read_bytes()

    def one_half_written() -> None:
        (photos / "late.png").write_bytes(bytes_read[:60])

    def whole_and_another() -> None:
        noise_image(seed=77).save(photos / "late.png")
        (photos / "0.png").write_bytes(b"changed while we watch")  # read again by the next command, not now

    def brighter() -> None:
        for number in range(20):
            noise_image(seed=100 + number).point(lambda value: 200 + value // 5).save(photos / f"lamp{number}.png")

    rounds(
        monkeypatch, one_half_written, whole_and_another, lambda: photos.rename(moved), lambda: moved.rename(photos),
        brighter,
    )  # fmt: skip
    words = ["embed", model, str(photos), "--out", str(tmp_path / "t.lance"), "--device", "cpu"]
    assert main([*words, "--watch", "5"]) == 0
    said = capsys.readouterr()
    assert "45 new, 0 changed, 0 unchanged" in said.out
    assert "  1 new" in said.err and "trying again in 5 seconds" in said.err
    assert "the 21 new images and 24 before: they differ" in said.err
    keys, _ = LanceTable(str(tmp_path / "t.lance")).normalized()
    assert len(keys) == 45 and {"late.png", "lamp19.png"} < set(keys)


def test_ctrl_c_in_a_round_keeps_what_is_in_the_table(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = noise_folder(tmp_path / "photos", 3)
    rounds(monkeypatch, lambda: noise_image(seed=9).save(photos / "new.png"))
    words = ["embed", model, str(photos), "--out", str(tmp_path / "t.lance"), "--device", "cpu"]
    assert main([*words, "--watch", "1"]) == 0
    assert main(words) == 0
    assert "0 new, 0 changed, 4 unchanged" in capsys.readouterr().out


def test_only_a_lance_table_grows(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", model, str(tmp_path), "--out", "t.csv", "--watch", "5"]) == 2
    assert "--watch is for .lance tables" in capsys.readouterr().err
