"""Tables that are updated from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.embeddings.conftest import small_embedder
from tests.factories import model_of, noise_image, small_vit

from opendino.app.model_cache import ModelCache
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.open_source import open_source
from opendino.embeddings import lance_table
from opendino.embeddings.embed_images import Embedder
from opendino.embeddings.open_table import open_table

lancedb = pytest.importorskip("lancedb")
Update = Callable[..., lance_table.Updated]


class Watched(Source):
    """Counts reads, and raises at one image as if the process was killed."""

    def __init__(self, folder: Path, kill_at: str = "") -> None:
        self._source, self._kill_at = open_source(folder), kill_at

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def label(self, index: int) -> int:
        return self._source.label(index)

    def read(self, index: int) -> bytes | np.ndarray:
        if self.key(index) == self._kill_at:
            raise KeyboardInterrupt
        return self._source.read(index)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the embedded images, in order."""
    keys: list[str] = []
    rows = Embedder.rows

    def noted(self: Embedder, indices: list[int], within: int | None = None) -> object:
        keys.extend(self.source.key(index) for index in indices)
        return rows(self, indices, within)

    monkeypatch.setattr(Embedder, "rows", noted)
    return keys


def rows(folder: Path) -> dict[str, list[float]]:
    keys, vectors = zip(*open_table(str(folder.parent / "photos.lance")).chunks(), strict=True)
    return dict(zip((key for some in keys for key in some), torch.cat(vectors).tolist(), strict=True))


def test_only_new_and_changed_images_are_embedded(
    photos: Path, brought_up_to_date: Update, embedded: list[str]
) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    done = brought_up_to_date(photos)
    assert (done.added, done.changed, done.unchanged, [key for key, _ in done.bad]) == (8, 0, 0, ["bad.png"])
    before = rows(photos)
    embedded.clear()
    noise_image(seed=33).save(photos / "3.png")
    noise_image(seed=34).save(photos / "it's new.png")
    (photos / "5.png").touch()  # another time, the same content
    (photos / "6.png").write_bytes(b"spoilt since")
    (photos / "7.png").unlink()
    done = brought_up_to_date(photos)
    assert sorted(embedded) == ["3.png", "6.png", "bad.png", "it's new.png"]
    assert (done.added, done.changed, done.unchanged, done.removed) == (1, 1, 5, 0)
    assert done.vanished == ["7.png"] and {key for key, _ in done.bad} == {"6.png", "bad.png"}
    after = rows(photos)
    assert after.keys() == before.keys() - {"6.png"} | {"it's new.png"}
    assert {key for key in before if key in after and before[key] != after[key]} == {"3.png"}
    source = open_source(photos)
    for part in small_embedder(model_of(small_vit()), source, photos).rows([source_index(source, "3.png")]):
        torch.testing.assert_close(torch.tensor(after["3.png"]), part.vectors[0], rtol=0, atol=1e-6)  # batches differ
    done = brought_up_to_date(photos, prune=True)
    assert (done.removed, done.vanished) == (1, [])
    assert rows(photos).keys() == after.keys() - {"7.png"}


def test_an_open_table_sees_what_another_process_adds(photos: Path, brought_up_to_date: Update) -> None:
    brought_up_to_date(photos)
    opened, name = open_table(str(photos.parent / "photos.lance")), photos.parent / "photos.lance"
    num, keys, cache = len(opened), opened.normalized()[0], ModelCache(torch.device("cpu"), lambda data: None)
    shown = cache.table(str(name))
    noise_image(seed=35).save(photos / "later.png")
    brought_up_to_date(photos)
    assert len(opened) == num + 1 and set(opened.normalized()[0]) - set(keys) == {"later.png"}
    vector = opened.normalized()[1][opened.normalized()[0].index("later.png")]
    assert opened.nearest(vector[None], 1).keys == [["later.png"]]
    assert cache.table(str(name)) is not shown and len(cache.table(str(name)).vectors[0]) == num + 1


def test_a_full_disk_is_not_called_a_damaged_table(
    photos: Path, brought_up_to_date: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought_up_to_date(photos)
    noise_image(seed=35).save(photos / "later.png")
    full = RuntimeError("lance error: IO error: No space left on device")
    monkeypatch.setattr(lancedb.table.LanceTable, "merge_insert", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match=r"cannot be written: .*No space left.*Free space"):
        brought_up_to_date(photos)


def source_index(source: Source, key: str) -> int:
    return [source.key(index) for index in range(len(source))].index(key)


def test_a_killed_update_keeps_what_was_committed(
    photos: Path, brought_up_to_date: Update, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_table, "_COMMIT", 3)
    with pytest.raises(KeyboardInterrupt):
        brought_up_to_date(photos, source=Watched(photos, kill_at="7.png"))
    kept = set(rows(photos))
    assert kept == {f"{number}.png" for number in range(6)}
    embedded.clear()
    done = brought_up_to_date(photos)
    assert done.unchanged == 6 and embedded == ["6.png", "7.png"]
    assert len(rows(photos)) == 8


def test_an_index_is_made_at_a_size_and_follows_the_table(photos: Path, brought_up_to_date: Update) -> None:
    for number in range(8, 300):
        noise_image(seed=number).save(photos / f"{number}.png")
    brought_up_to_date(photos, index_from=301)
    name = str(photos.parent / "photos.lance")
    query = torch.tensor([rows(photos)["9.png"]])
    assert open_table(name).nearest(query, 1).exact
    noise_image(seed=300).save(photos / "300.png")
    noise_image(seed=999).save(photos / "9.png")
    brought_up_to_date(photos, index_from=301)
    table = open_table(name)
    assert isinstance(table, lance_table.LanceTable)
    found = table.nearest(query, 5)
    assert not found.exact
    assert set(found.keys[0]) == set(table.nearest(query, 5, exact=True).keys[0])
    noise_image(seed=301).save(photos / "301.png")
    (photos / "0.png").unlink()
    brought_up_to_date(photos, index_from=301, prune=True)
    (index,) = lance_table._indices(lance_table.LanceTable(name)._table)
    stats = lance_table.LanceTable(name)._table.index_stats(index.name)
    assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (301, 0)
    new = torch.tensor([rows(photos)["301.png"]])
    assert open_table(name).nearest(new, 1).keys == [["301.png"]]


def test_another_model_other_images_and_other_columns_are_refused(
    photos: Path, brought_up_to_date: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought_up_to_date(photos)
    before = rows(photos)
    with pytest.raises(UserError, match="holds vectors of an earlier version of it"):
        brought_up_to_date(photos, model_of(small_vit(seed=1)))
    (photos.parent / "others").mkdir()
    noise_image(seed=50).save(photos.parent / "others/0.png")
    with pytest.raises(UserError, match=r"holds images of .*photos, not of .*others"):
        brought_up_to_date(photos.parent / "others")
    with pytest.raises(UserError, match="was made without patches"):
        brought_up_to_date(photos, patches=True)
    assert rows(photos) == before
    monkeypatch.chdir(photos.parent)
    assert brought_up_to_date(Path("photos")).unchanged == 8  # the same folder, another spelling


def test_patches_are_kept_on_request(photos: Path, brought_up_to_date: Update) -> None:
    brought_up_to_date(photos, patches=True)
    table = lance_table.LanceTable(str(photos.parent / "photos.lance"))
    assert table.about["grid"] == [2, 2]
    assert table._table.to_arrow()["patches"].type.list_size == 4 * 24


def test_nothing_is_left_where_nothing_can_be_read(tmp_path: Path, brought_up_to_date: Update) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"None of the 1 images can be read, e\.g\. 0\.png"):
        brought_up_to_date(tmp_path / "photos")
    assert not (tmp_path / "photos.lance").exists()


@pytest.mark.parametrize(
    ("name", "told"), [("my photos.lance", "does not allow a table name"), ("no/x.lance", "no folder")]
)
def test_a_name_that_cannot_be_is_refused(photos: Path, name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        lance_table.update(
            str(photos.parent / name), small_embedder(model_of(small_vit()), open_source(photos), photos)
        )


def test_overwriting_replaces_the_table(photos: Path, brought_up_to_date: Update) -> None:
    for number in range(8, 260):
        noise_image(seed=number).save(photos / f"{number}.png")
    brought_up_to_date(photos, index_from=260)
    (photos / "0.png").unlink()
    done = brought_up_to_date(photos, model_of(small_vit(seed=1)), overwrite=True, index_from=260)
    assert (done.added, done.unchanged, done.vanished) == (259, 0, [])
    table = lance_table.LanceTable(str(photos.parent / "photos.lance"))
    assert table.about["fingerprint"] == model_of(small_vit(seed=1)).fingerprint and len(table) == 259
    assert not lance_table._indices(table._table)  # the old one is of other vectors


def test_a_table_in_an_object_store_is_made_and_followed(photos: Path) -> None:
    name, embedder = (
        f"file://{photos.parent}/store.lance",
        small_embedder(model_of(small_vit()), open_source(photos), photos),
    )
    assert lance_table.update(name, embedder).added == 8
    assert lance_table.update(name, embedder).unchanged == 8
    assert len(open_table(name)) == 8


def test_a_table_that_was_emptied_still_knows_its_model(photos: Path, brought_up_to_date: Update) -> None:
    brought_up_to_date(photos)
    lance_table.LanceTable(str(photos.parent / "photos.lance"))._table.delete("true")
    with pytest.raises(UserError, match="holds vectors of"):
        brought_up_to_date(photos, model_of(small_vit(seed=1)))
    assert brought_up_to_date(photos).added == 8


def test_a_new_table_is_made_without_a_warning(
    photos: Path, brought_up_to_date: Update, capfd: pytest.CaptureFixture[str]
) -> None:
    assert brought_up_to_date(photos).added == 8
    assert brought_up_to_date(photos, overwrite=True).added == 8
    assert capfd.readouterr().err == ""
