"""Label propagation against plain loops, on perfect features, and end to end from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, small_vit
from torch import Tensor
from torch.nn.functional import one_hot

from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.data.sources.toy import ToySource
from opendino.datasets import mask_files
from opendino.datasets.mask_metrics import jaccard
from opendino.evals import video_segmentation
from opendino.evals.video_segmentation import Config, Tracker, evaluate, harden, propagate, working_size
from opendino.models.build import backbone
from opendino.models.load import preprocessing, save_backbone

SIZE = 48
HOW = ["--size-px", str(SIZE), "--device", "cpu"]


def by_loops(
    target: Tensor, context: Tensor, labels: Tensor, radius: int, top_k: int, temperature: float = 0.1
) -> Tensor:
    """The description of `propagate`, word by word."""
    height, width, _ = target.shape
    out = torch.zeros_like(labels[0])
    for y, x in np.ndindex(height, width):
        near = []
        for n, v, u in np.ndindex(len(context), height, width):
            if not radius or (abs(v - y) <= radius and abs(u - x) <= radius):
                cosine = float(target[y, x] @ context[n, v, u] / target[y, x].norm() / context[n, v, u].norm())
                near.append((math.exp(cosine / temperature), labels[n, :, v, u]))
        near.sort(key=lambda pair: -pair[0])
        total = sum(weight for weight, _ in near[:top_k])
        out[:, y, x] = sum((weight / total * label for weight, label in near[:top_k]), torch.zeros(len(out)))
    return out


def scene(grid: tuple[int, int], num_context: int, num_labels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random features and labels in float64."""
    return (
        torch.randn(*grid, 6, dtype=torch.float64),
        torch.randn(num_context, *grid, 6, dtype=torch.float64),
        torch.rand(num_context, num_labels, *grid, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("grid", "num_context", "radius", "top_k"),
    [
        ((5, 5), 3, 1, 5),
        ((3, 9), 2, 2, 4),  # wide
        ((8, 2), 1, 3, 5),  # tall, the first frame alone
        ((4, 5), 2, 12, 5),  # a window larger than the grid
        ((4, 5), 2, 0, 3),  # no window
        ((2, 3), 1, 1, 50),  # top_k above the number of patches
        ((1, 1), 1, 12, 5),
    ],
)
def test_propagation_is_that_of_plain_loops(grid: tuple[int, int], num_context: int, radius: int, top_k: int) -> None:
    target, context, labels = scene(grid, num_context)
    expected = by_loops(target, context, labels, radius, top_k)
    for tile in (1, 2, 3, 100):
        found = propagate(target, context, labels, radius, top_k, tile=tile)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_patches_as_similar_as_the_last_count_too() -> None:
    target, context = torch.ones(1, 3, 2), torch.ones(1, 1, 3, 2)
    labels = torch.tensor([[[[0.0, 0.3, 0.9]]]])
    assert propagate(target, context, labels, top_k=1).flatten().tolist() == pytest.approx([0.4] * 3)


def test_memory_does_not_grow_with_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    topk = Tensor.topk

    def watched(similarity: Tensor, *args: int) -> object:
        nonlocal largest
        largest = max(largest, similarity.numel())
        return topk(similarity, *args)

    monkeypatch.setattr(Tensor, "topk", watched)
    for grid in ((20, 20), (40, 70)):
        propagate(*(part.float() for part in scene(grid, 2)), radius=3, tile=4)
        assert largest == 2 * 4**2 * (4 + 2 * 3) ** 2


def test_the_first_frame_and_the_last_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(target: Tensor, context: Tensor, labels: Tensor, **_: object) -> Tensor:
        seen.append((context[:, 0, 0, 0].tolist(), labels[:, 0, 0, 0].tolist()))
        return target[..., 0][None] * 10

    monkeypatch.setattr(video_segmentation, "propagate", spy)
    tracker = Tracker(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 7.0), num_last=2)
    for t in range(1, 5):
        tracker(torch.full((1, 1, 1), float(t)))
    assert seen == [([0], [7]), ([0, 1], [7, 10]), ([0, 1, 2], [7, 10, 20]), ([0, 2, 3], [7, 20, 30])]


@pytest.mark.parametrize("index", [0, 1])
def test_perfect_features_follow_toy_videos(index: int) -> None:
    truth = torch.from_numpy(ToySource("forms", size=96).video(index, 12)[1][:, 1::2, 1::2])  # one of 2×2 is a patch
    maps = one_hot(truth.long(), 3).float()
    tracker = Tracker(maps[0], maps[0].permute(2, 0, 1))
    found = torch.stack([harden(tracker(features), 48, 48) for features in maps[1:]])
    for number in range(1, 2 + index):
        assert jaccard(truth[1:] == number, found == number).mean() >= 0.95


def test_each_label_is_stretched_before_the_strongest_is_taken() -> None:
    # A weak object is seen where it is at its strongest, as 0.3 of 0.3; the ground is there at 0 of 0.4.
    soft = torch.tensor([[[1.0, 0.6]], [[0.0, 0.3]]])
    assert harden(soft, 1, 2).tolist() == [[0, 1]]
    assert harden(torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]), 4, 6).unique().tolist() == [1]
    assert (harden(soft, 3, 7).shape, harden(soft, 3, 7).dtype) == ((3, 7), torch.uint8)


@pytest.mark.parametrize(
    ("frame", "short_px", "patch_px", "expected"),
    [
        ((480, 854), 480, 16, (480, 832)),
        ((854, 480), 480, 8, (832, 480)),
        ((1080, 1920), 480, 16, (480, 832)),
        ((240, 427), 240, 16, (240, 384)),
        ((480, 854), 480, 14, (476, 840)),
        ((500, 510), 480, 16, (480, 480)),
        ((48, 48), 48, 4, (48, 48)),
        ((3, 900), 10, 16, (16, 2944)),
    ],
)
def test_working_sizes(frame: tuple[int, int], short_px: int, patch_px: int, expected: tuple[int, int]) -> None:
    assert working_size(*frame, short_px, patch_px) == expected


# ---- end to end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"), small_vit("vit/4", image_px=SIZE), SIZE)


def write_davis(root: Path, videos: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write frames `[T H W 3]` and masks `[T H W]` of videos in the layout of DAVIS."""
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in videos))
    for name, (frames, truth) in videos.items():
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for t, (frame, mask) in enumerate(zip(frames, truth, strict=True)):
            Image.fromarray(frame).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
            (root / f"Annotations/480p/{name}/{t:05d}.png").write_bytes(mask_files.encode(mask, mask_files.palette()))
    return root


@pytest.fixture(scope="module")
def toy_davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = ToySource("forms", size=SIZE)
    return write_davis(tmp_path_factory.mktemp("davis"), {f"toy{i}": source.video(i, 5) for i in (0, 1)})


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["eval", "video-segmentation", *args, *HOW, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_davis_end_to_end(model: str, toy_davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run([model, "--data", str(toy_davis), "--out", str(tmp_path)], capsys)
    assert set(found["per_sequence"]) == {"toy0", "toy1"}
    assert list(found["per_sequence"]["toy1"]["objects"]) == ["1", "2"]
    objects = [scores for film in found["per_sequence"].values() for scores in film["objects"].values()]
    assert found["frames"] == 10
    for name in ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"):
        assert found[name] == pytest.approx(np.mean([scores[name] for scores in objects]))
    assert 40 < found["J_mean"] < 100, "even random features see gray values"
    assert found["JF_mean"] == pytest.approx((found["J_mean"] + found["F_mean"]) / 2)

    # The masks written are those scored.
    written = [mask_files.read(path)[0] for path in sorted((tmp_path / "toy0").glob("*.png"))]
    truth = [mask_files.read(path)[0] for path in sorted((toy_davis / "Annotations/480p/toy0").glob("*.png"))]
    np.testing.assert_array_equal(written[0], truth[0])
    pairs = [torch.from_numpy(np.stack(part)[1:-1] == 1) for part in (truth, written)]
    assert found["per_sequence"]["toy0"]["J_mean"] == pytest.approx(100 * float(jaccard(*pairs).mean()))


def test_the_table_says_the_protocol(model: str, toy_davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["eval", "video-segmentation", model, "--data", str(toy_davis), "--sequences", "toy1", *HOW]
    assert main(args) == 0
    out = capsys.readouterr().out
    for said in (
        "toy1 1",
        "toy1 2",
        "J&F",
        "within 12 patches, top 5, temperature 0.1",
        "without the first and the last",
    ):
        assert said in out
    assert "toy0" not in out


def test_in_2016_all_objects_are_one(model: str, toy_davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy_davis / "ImageSets/2016").mkdir()
    (toy_davis / "ImageSets/2016/val.txt").write_text("toy1\n")
    found = run([model, "--data", str(toy_davis), "--year", "2016"], capsys)
    assert list(found["per_sequence"]["toy1"]["objects"]) == ["1"]


def test_thirty_objects_and_one_that_vanishes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = np.arange(60) // 2 + 1
    first = np.repeat(columns[None], 48, axis=0).astype(np.uint8)  # thirty stripes
    first[:8] = 0
    truth = np.stack([first, first, np.where(first == 30, 0, first), first])
    frames = np.random.default_rng(0).integers(0, 256, (1, 48, 60, 3), np.uint8).repeat(4, 0)
    root = write_davis(tmp_path / "davis", {"stripes": (frames, truth.astype(np.uint8))})
    found = run([model, "--data", str(root), "--out", str(tmp_path / "out")], capsys)
    objects = found["per_sequence"]["stripes"]["objects"]
    assert list(objects) == [str(number) for number in range(1, 31)]
    assert objects["30"]["J_recall"] <= 50, "scored as 0 in the frame where only we see it"
    assert mask_files.read(tmp_path / "out/stripes/00001.png")[0].max() > 20


def test_a_video_file_with_one_mask(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, truth = ToySource("forms", size=SIZE).video(1, 4)
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    colors = bytes(range(9)) + bytes(759)
    renumbered = np.array([0, 2, 1], np.uint8)[truth[0]]
    (tmp_path / "first.png").write_bytes(mask_files.encode(renumbered, colors))
    args = ["--data", str(tmp_path / "film.mp4"), "--mask", str(tmp_path / "first.png"), "--out", str(tmp_path / "out")]
    found = run([model, *args], capsys)
    assert found["J_mean"] is found["per_sequence"]["film"]["F_decay"] is None
    assert found["notes"] == ["film: nothing to score: only the first frame has a mask"]
    written = [mask_files.read(path) for path in sorted((tmp_path / "out/film").iterdir())]
    assert len(written) == 4 and all(palette == colors for _, palette in written)
    np.testing.assert_array_equal(written[0][0], renumbered)
    assert (written[-1][0] == np.array([0, 2, 1])[truth[-1]]).mean() > 0.8


def test_one_frame(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, truth = ToySource("forms", size=SIZE).video(0, 1)
    found = run([model, "--data", str(write_davis(tmp_path, {"still": (frames, truth)}))], capsys)
    assert (found["J_mean"], found["frames"]) == (None, 1)
    assert "nothing to score" in found["notes"][0]


def test_masks_of_another_size_and_black_and_white(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, truth = ToySource("forms", size=SIZE).video(0, 4)
    large = (255 * truth).repeat(2, 1).repeat(2, 2)
    large[2] = 0  # an empty mask between black and white ones
    root = write_davis(tmp_path, {"toy": (frames, large)})
    found = run([model, "--data", str(root), "--out", str(tmp_path / "out")], capsys)
    assert found["notes"] == ["toy: masks of 96×96 px for frames of 48×48 px were resized by nearest neighbor"]
    assert list(found["per_sequence"]["toy"]["objects"]) == ["1"]
    np.testing.assert_array_equal(mask_files.read(tmp_path / "out/toy/00000.png")[0], truth[0])


def test_an_unreadable_frame_is_skipped(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_davis(tmp_path, {"toy": ToySource("forms", size=SIZE).video(0, 4)})
    frames = root / "JPEGImages/480p/toy"
    (frames / "00001.jpg").write_bytes(b"no image")
    found = run([model, "--data", str(root), "--out", str(tmp_path / "out")], capsys)
    assert found["notes"] == ["toy: frame 00001 was skipped: not an image in a known format"]
    assert found["J_mean"] is not None
    assert (found["frames"], found["skipped"]) == (4, 1)
    assert sorted(path.stem for path in (tmp_path / "out/toy").iterdir()) == ["00000", "00002", "00003"]
    (frames / "00000.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="first frame of toy cannot be read"):
        evaluate(Config(model, data=str(root), size_px=SIZE, device="cpu"))


def test_mistakes_are_one_clear_line(model: str, toy_davis: Path, tmp_path: Path) -> None:
    def said(error: type[UserError], **flags: object) -> str:
        with pytest.raises(error) as caught:
            evaluate(Config(model, **{"data": str(toy_davis), "device": "cpu", "size_px": SIZE, **flags}))  # pyright: ignore
        assert "\n" not in str(caught.value)
        return str(caught.value)

    frames = str(toy_davis / "JPEGImages/480p/toy0")
    first = str(toy_davis / "Annotations/480p/toy0/00000.png")
    assert "--data is missing" in said(UsageError, data="")
    assert "nowhere does not exist" in said(UserError, data="nowhere")
    assert "does not have the layout of DAVIS. Give the mask of the first frame" in said(UsageError, data=frames)
    assert "Give --out" in said(UsageError, data=frames, mask=first)
    assert "cannot be used with DAVIS" in said(UsageError, mask=first)
    assert "Did you mean toy1 or toy0?" in said(UserError, sequences=("toy2",))
    assert "would overwrite" in said(UsageError, out=str(toy_davis / "Annotations/480p"))
    assert "would overwrite" in said(UsageError, data=frames, mask=first, out=str(toy_davis / "JPEGImages/480p"))
    out = str(tmp_path / "out")
    assert "cannot be used: No such file" in said(UserError, data=frames, mask="nowhere.png", out=out)
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "black.png")
    assert "has no object" in said(UserError, data=frames, mask=str(tmp_path / "black.png"), out=out)
    (tmp_path / "file").touch()
    assert "Cannot write into" in said(UserError, data=frames, mask=first, out=str(tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["black.png", "file"], "nothing is left behind"
    assert "size_px is 0" in said(UsageError, size_px=0)
    assert "temperature is 0" in said(UsageError, temperature=0)


def test_any_network_with_a_grid_will_do(toy_davis: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path, {"teacher": backbone("conv4", width=4)}, preprocessing=preprocessing(32))
    report = evaluate(Config(str(tmp_path), data=str(toy_davis), sequences=("toy0",), size_px=SIZE, device="cpu"))
    assert 0 < report.fields["J_mean"] <= 100
