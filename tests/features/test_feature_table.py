"""One pass over a source: every readable image once, in order, whatever the batch, the threads or the processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_of, plain_folder, small_vit

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.open_source import open_source
from opendino.features.feature_table import hold_out, table
from opendino.features.train_val_features import LabeledData, train_val_features
from opendino.features.view_features import RandomCrops, view_features
from opendino.models.build import backbone
from opendino.models.conv4 import Conv4
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model
from opendino.views.settings import view


def three_blocks() -> Model:
    return model_of(small_vit(depth=3))


class Broken(Source):
    """A source some of whose images cannot be read."""

    def __init__(self, source: Source, bad: set[int]) -> None:
        self.source, self.bad, self.classes = source, bad, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int:
        return self.source.label(index)

    def read(self, index: int) -> bytes | np.ndarray:
        if index in self.bad:
            raise BadImage("worn out")
        return self.source.read(index)


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (4, 3), (64, 2)])
def test_rows_are_the_models_own_features_in_the_sources_order(batch: int, workers: int) -> None:
    model, source = three_blocks(), open_source("toy:textures?n=13&size=20")
    found = table(model, source, batch=batch, workers=workers)
    wanted = model.embed([Image.fromarray(source.read(i)) for i in range(13)])  # type: ignore[arg-type]
    torch.testing.assert_close(found.features, wanted, rtol=0, atol=1e-5)  # other batches, other sums
    assert found.labels.tolist() == [i % 10 for i in range(13)]
    assert found.indices.tolist() == list(range(13)) and found.classes == source.classes and found.bad == ()


def test_unreadable_images_are_left_out_with_their_reason() -> None:
    source = Broken(open_source("toy:textures?n=11&size=16"), {0, 4, 10})
    found = table(three_blocks(), source, batch=3)
    assert found.indices.tolist() == [1, 2, 3, 5, 6, 7, 8, 9] and len(found) == len(found.features) == 8
    assert found.bad == tuple((source.key(i), "worn out") for i in (0, 4, 10))
    with pytest.raises(
        UserError, match=r"None of the 11 images can be read, e\.g\. textures/train/bricks/000000: worn"
    ):
        table(three_blocks(), Broken(source, set(range(11))))


def test_rows_are_a_plain_loop_to_the_bit() -> None:
    model, source = three_blocks(), Broken(open_source("toy:textures?n=11&size=16"), {1, 9})
    parts = [(0, 2, 3), (4, 5, 6, 7), (8, 10)]  # batches of four, without the unreadable images
    plain = [model.embed(torch.stack([model.preprocess(source.read(i)) for i in part])) for part in parts]
    assert torch.equal(table(model, source, batch=4).features, torch.cat(plain))


def test_some_of_the_images_in_half_precision() -> None:
    source = open_source("toy:textures?n=20&size=16")
    some = table(three_blocks(), source, indices=[2, 3, 11], dtype=torch.float16)
    assert some.features.dtype == torch.float16 and some.indices.tolist() == [2, 3, 11]
    whole = table(three_blocks(), source).features[[2, 3, 11]]
    torch.testing.assert_close(some.features.float(), whole, rtol=1e-3, atol=1e-3)  # float16


def test_a_broken_network_is_named() -> None:
    model = three_blocks()
    torch.nn.init.constant_(next(model.backbone.parameters()), float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        table(model, open_source("toy:textures?n=3&size=16"))


def test_tokens_lie_side_by_side() -> None:
    model, images = three_blocks(), torch.randn(2, 3, 16, 16)
    last = model.backbone.intermediate(images, 3)  # type: ignore[operator]
    cls, mean = [each.cls for each in last], last[-1].patches.mean(1)
    for tokens, wanted in (
        (Tokens(), [cls[2]]),
        (Tokens(1, True), [cls[2], mean]),
        (Tokens(2), [cls[1], cls[2]]),
        (Tokens(3, True), [*cls, mean]),
    ):
        torch.testing.assert_close(tokens(model.backbone, images), torch.cat(wanted, 1), rtol=0, atol=1e-6)
    assert Tokens(3, True).of(small_vit()) == "CLS of the last 3 blocks + mean patch"
    assert Tokens().of(Conv4(width=2)) == "global average"
    with pytest.raises(UserError, match="last 4 blocks were asked for and vit/8 has 3 blocks"):
        table(model, open_source("toy:textures?n=3&size=16"), Tokens(4))
    with pytest.raises(UserError, match="conv4 has one output"):
        Tokens(2).check(backbone("conv4", width=4))


def test_labels_go_by_name() -> None:
    found = table(three_blocks(), open_source("toy:textures?n=10&size=16"))
    names = [*reversed(found.classes)][1:]  # lacks the last
    assert found.labels_by(names).tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0, 9]


@pytest.mark.parametrize(("num", "share", "held"), [(10, 0.2, 2), (11, 0.2, 3), (1, 0.1, 1)])
def test_what_is_held_out_is_always_the_same(num: int, share: float, held: int) -> None:
    whole = table(three_blocks(), open_source(f"toy:textures?n={num}&size=16"))
    rest, out = hold_out(whole, share)
    assert (len(rest), len(out)) == (num - held, held)
    assert sorted([*rest.indices.tolist(), *out.indices.tolist()]) == list(range(num))
    assert torch.equal(out.indices, hold_out(whole, share)[1].indices)


def test_images_without_a_class_take_no_side(tmp_path: Path) -> None:
    plain_folder(tmp_path, *[f"{number}.png" for number in range(9)])
    (tmp_path / "some.csv").write_text("".join(f"{n}.png,{'ab'[n % 2] if n < 6 else ''}\n" for n in range(9)))
    (tmp_path / "few.csv").write_text("0.png,a\n1.png,\n")
    both = train_val_features(three_blocks(), LabeledData(str(tmp_path / "some.csv"), None))
    assert (len(both.train), len(both.val)) == (4, 2)
    with pytest.raises(UserError, match="needs two classes"):
        train_val_features(three_blocks(), LabeledData(str(tmp_path / "few.csv"), None))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/some.csv").write_text((tmp_path / "some.csv").read_text())  # not beside the images
    apart = train_val_features(three_blocks(), LabeledData(str(tmp_path), None, str(tmp_path / "labels/some.csv")))
    assert torch.equal(apart.all_labeled().features, both.all_labeled().features)
    assert apart.train.classes == both.train.classes and torch.equal(apart.train.labels, both.train.labels)
    with pytest.raises(UserError, match=r"names no classes.*--labels"):
        train_val_features(three_blocks(), LabeledData(str(tmp_path), None))


def test_views_are_drawn_by_the_seed_and_know_their_labels() -> None:
    model, source = three_blocks(), open_source("toy:textures?n=20&size=24")
    augment = (view({"crop.scale": (0.3, 1.0)}),) * 3

    def drawn(**options: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        crops = RandomCrops(augment, batch=6, workers=0, **options)
        return list(view_features(model, source, range(5, 17), crops))

    first, again, other = drawn(epochs=2), drawn(epochs=2), drawn(seed=1)
    assert [tuple(features.shape) for features, _ in first] == [(3, 6, 24)] * 4 and len(other) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0]) and not torch.equal(first[0][0], first[2][0])
    seen = torch.cat([labels for _, labels in first[:2]])
    assert seen.sort().values.tolist() == sorted(i % 10 for i in range(5, 17))


MANY, FEW = 7, 3  # of the first three images two are unreadable, so that a rank has none


def share(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for num in (MANY, FEW):
        found = table(
            three_blocks(), Broken(open_source(f"toy:textures?n={num}&size=16"), {0, 1, 5}), batch=2, workers=1
        )
        told = {"features": found.features, "indices": found.indices, "bad": len(found.bad)}
        torch.save(told, folder / f"{num}_{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_share_the_images_and_all_get_the_table(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=share, args=(tmp_path, rank)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for num in (MANY, FEW):
        alone = table(three_blocks(), Broken(open_source(f"toy:textures?n={num}&size=16"), {0, 1, 5}), batch=2)
        for rank in range(2):
            found = torch.load(tmp_path / f"{num}_{rank}.pt", weights_only=True)
            assert torch.equal(found["indices"], alone.indices) and found["bad"] == len(alone.bad)
            torch.testing.assert_close(found["features"], alone.features, rtol=0, atol=1e-5)  # other batches
