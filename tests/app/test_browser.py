"""The page in a real browser, Chromium without a screen, with mouse and keyboard."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sys
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.app.browser import MARKS, WAIT_MS, Visit, picture, put, sentence
from tests.app.conftest import gigapixel, row, scene

from opendino.cli import main
from opendino.datasets import mask_files, video_frames

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = MARKS
_DISC, _LEFT = (0.55, 0.5), (0.12, 0.5)  # of an image `scene(5)`


def test_curves_of_several_runs_grow_while_one_continues(visit: Visit, place: Path) -> None:
    panel = visit.tab("Curves")
    panel.get_by_text("430 of 800").wait_for()
    panel.get_by_text("800 of 800").wait_for()
    panel.locator(".plots svg").nth(5).wait_for()
    loss = panel.locator(".plots svg").first.locator(".mark-line path")
    sync.expect(loss).to_have_count(2, timeout=WAIT_MS)  # a line a run
    before = loss.first.get_attribute("d")
    with open(place / "runs/second/metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(row(step, 800, 1) for step in range(431, 441))
    panel.get_by_text("440 of 800").wait_for()
    sync.expect(loss.first).not_to_have_attribute("d", before, timeout=WAIT_MS)
    panel.get_by_label("runs/first").uncheck()
    sync.expect(loss).to_have_count(1, timeout=WAIT_MS)
    captions = panel.locator(".plots .block").filter(has_text="Good:")
    cut = "all => all.filter(each => each.scrollHeight > each.clientHeight).map(each => each.innerText)"
    assert captions.count() > 2 and captions.evaluate_all(cut) == []


def test_attention_and_pca_of_an_image_follow_the_sliders(visit: Visit, photo: Path) -> None:
    panel = visit.tab("Look")
    put(panel, photo)
    shown = picture(panel, "Result")
    first = shown.get_attribute("src")
    panel.get_by_text("dark to bright").wait_for()
    panel.get_by_role("slider", name=re.compile("Share of the attention to show")).focus()
    visit.page.keyboard.press("Home")
    sync.expect(shown).not_to_have_attribute("src", first, timeout=WAIT_MS)
    panel.get_by_label("PCA").check()
    panel.get_by_text("three components explain").wait_for()


def test_an_image_of_the_servers_folder_and_of_a_stack_can_be_looked_at(visit: Visit, tmp_path: Path) -> None:
    panel = visit.tab("Look")
    panel.get_by_label("Or an image of a folder").click()
    visit.page.get_by_role("option", name="photos", exact=True).click()
    panel.get_by_label("Image, one of 24").click()
    visit.page.get_by_role("option", name="05.png", exact=True).click()
    panel.get_by_text("dark to bright").wait_for()
    shown = picture(panel, "Result")
    first = shown.get_attribute("src")
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.stack([np.asarray(scene(n).convert("L")) for n in range(3)]),
        photometric="minisblack",
    )
    put(panel, tmp_path / "stack.tif")
    panel.get_by_text("This is a stack: 3 pages").wait_for()
    panel.get_by_label("The pages of this stack are").click()
    visit.page.get_by_role("option", name="channels").click()
    sync.expect(shown).not_to_have_attribute("src", first or "", timeout=WAIT_MS)
    assert not panel.get_by_text("This is a stack").is_visible()


def test_bad_images_are_refused_in_a_sentence_and_the_page_continues(visit: Visit, tmp_path: Path, photo: Path) -> None:
    panel = visit.tab("Look")
    (tmp_path / "program.jpg").write_bytes(Path(sys.executable).resolve().read_bytes()[:100_000])
    put(panel, tmp_path / "program.jpg")
    panel.get_by_text("This image cannot be used: not an image in a known format").wait_for()
    (tmp_path / "huge.png").write_bytes(gigapixel())
    put(panel, tmp_path / "huge.png")
    panel.get_by_text("This image cannot be used: 1,024,000,000 pixels").wait_for()
    put(panel, photo)
    panel.get_by_text("dark to bright").wait_for()
    assert not panel.get_by_text("cannot be used").is_visible()


def test_a_click_finds_the_same_place_in_another_picture(visit: Visit, tmp_path: Path) -> None:
    panel = visit.tab("Match")
    scene(5, (240, 180)).save(tmp_path / "one.png")
    put(panel, tmp_path / "one.png")
    clicked = picture(panel, "First image: click on a point")
    clicked.wait_for()
    scene(5, (240, 180)).save(tmp_path / "two.png")
    put(panel, tmp_path / "two.png", number=1)  # the first can be replaced
    picture(panel, "Second image").wait_for()
    clicked.click()
    panel.get_by_text("best match: 1.00").wait_for()  # the pictures are the same


def test_search_shows_the_query_itself_first_and_never_a_path_to_it(visit: Visit, place: Path) -> None:
    panel = visit.tab("Search")
    put(panel, place / "photos/07.png")
    visit.page.get_by_text("Done", exact=True).first.wait_for(state="attached")  # said to screen readers
    panel.get_by_text("1.00 · 07.png").wait_for()
    panel.get_by_text("12 of 24 images, exact search, with the model that made the table: runs/first").wait_for()
    assert str(place) not in visit.page.content()
    panel.get_by_text("1.00 · 07.png").click()  # and then it is looked at
    sync.expect(visit.page.get_by_role("tab", name="Look")).to_have_attribute("aria-selected", "true", timeout=WAIT_MS)
    visit.page.get_by_role("tabpanel").filter(visible=True).get_by_text("dark to bright").wait_for()


def test_a_painted_object_is_tracked_through_a_video(visit: Visit, tmp_path: Path) -> None:
    frames = (np.asarray(scene(number, (160, 120))) for number in range(6))
    video_frames.write(tmp_path / "film.mp4", frames, Fraction(6))
    panel = visit.tab("Video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", encoding="utf-8")
    put(panel, tmp_path / "list.mp4")
    panel.get_by_text("not a supported video").wait_for()
    panel.get_by_label("Clear").first.click()
    put(panel, tmp_path / "film.mp4")
    panel.get_by_label("film.mp4").wait_for()
    visit.page.wait_for_timeout(3000)  # the editor builds its canvas
    canvas = panel.locator("canvas").first.bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    panel.get_by_role("button", name="Track").click()
    sentence(visit.page, "Nothing is painted")
    visit.page.mouse.move(*middle)
    visit.page.mouse.down()
    for step in range(6):  # as slowly as a hand
        visit.page.mouse.move(middle[0] + 5 * step, middle[1] + 2 * step)
        visit.page.wait_for_timeout(80)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(1000)
    panel.get_by_role("button", name="Track").click()
    panel.get_by_text("6 frames, 1 object.").wait_for()
    assert panel.locator("video").count() == 1


def stroke(visit: Visit, panel: Any, at: tuple[float, float], photo: tuple[int, int]) -> None:
    """Paint a short stroke down from a point of the image, which the editor shows at most at its own size."""
    canvas = panel.locator("canvas").first.bounding_box()
    scale = float(panel.get_by_text(re.compile(r"^\d+%$")).inner_text().rstrip("%")) / 100
    x, y = (canvas[start] + canvas[side] / 2 + (part - 0.5) * size * scale
            for start, side, part, size in zip("xy", ("width", "height"), at, photo, strict=True))  # fmt: skip
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    for step in range(6):  # as slowly as a hand
        visit.page.mouse.move(x, y + 3 * step)
        visit.page.wait_for_timeout(80)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(500)


def color(panel: Any, number: int) -> None:
    panel.get_by_label("Color", exact=True).click()
    panel.locator("button.color").nth(number).click()
    panel.get_by_label("Brush", exact=True).click()


def show(panel: Any, note: str) -> None:
    panel.get_by_role("button", name="Show the mask").click()
    panel.get_by_text(re.compile(note)).wait_for()


def test_strokes_become_masks_and_a_head_that_predict_uses(visit: Visit, tmp_path: Path) -> None:
    panel = visit.tab("Segment")
    for number in (5, 6):
        scene(number, (240, 180)).save(tmp_path / f"{number}.png")
    put(panel, tmp_path / "5.png")
    panel.get_by_label("Color", exact=True).wait_for()
    visit.page.wait_for_timeout(3000)  # the editor builds its canvas
    stroke(visit, panel, _DISC, (240, 180))
    panel.get_by_role("button", name="Show the mask").click()
    sentence(visit.page, "Two classes are needed")
    color(panel, 1)
    stroke(visit, panel, _LEFT, (240, 180))
    show(panel, r"01-upload: red [\d.]+ %, green [\d.]+ % \(classes 0, 1\); \d")
    picture(panel, "Mask").wait_for()

    put(panel, tmp_path / "6.png")
    panel.get_by_text(re.compile("02-upload: red")).wait_for()  # its mask, before a stroke on it
    visit.page.wait_for_timeout(3000)
    color(panel, 2)
    stroke(visit, panel, (0.9, 0.5), (240, 180))
    show(panel, r"02-upload: red [\d.]+ %, green [\d.]+ %, pink [\d.]+ % \(classes 0, 1, 2\)")
    panel.get_by_label("Thumbnail 1 of 2").click()
    panel.get_by_text(re.compile("01-upload: red .*pink")).wait_for()

    panel.get_by_label("Names of the classes").fill("disc, left")
    show(panel, r"01-upload: disc .*, left .*, pink")
    panel.get_by_role("button", name="Export").click()
    panel.get_by_text("--names disc left 'class 2'").wait_for()
    with visit.page.expect_download() as download:
        panel.get_by_role("button", name="Download head").click()
    with zipfile.ZipFile(download.value.path()) as exported:
        exported.extractall(tmp_path)
    painted = [mask_files.read(tmp_path / f"export/scribbles/masks/0{n}-upload.png")[0] for n in (1, 2)]
    assert [np.unique(mask).tolist() for mask in painted] == [[0, 1, 255], [2, 255]]
    assert painted[0].shape == (180, 240) and painted[0][90, 132] == 0 and painted[0][92, 29] == 1
    words = ["predict", str(tmp_path / "export/head"), str(tmp_path / "export/scribbles/images"), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "masks")]) == 0
    for n in (1, 2):
        told, again = (mask_files.read(folder / f"0{n}-upload.png")[0]
                       for folder in (tmp_path / "export/masks", tmp_path / "masks"))  # fmt: skip
        assert (told == again).mean() > 0.999


def test_the_temperature_sliders_move_the_distributions(visit: Visit) -> None:
    panel = visit.tab("Temperature")
    panel.get_by_text("Balanced.").wait_for()
    bar = panel.locator(".mark-rect path").last  # of the teacher's mean
    before = bar.get_attribute("d")
    centering = panel.get_by_role("slider", name=re.compile("Centering"))
    centering.focus()
    visit.page.keyboard.press("Home")  # none
    panel.get_by_text("One prototype dominates.").wait_for()
    sync.expect(bar).not_to_have_attribute("d", before, timeout=WAIT_MS)
    panel.get_by_role("slider", name=re.compile("Teacher temperature")).focus()
    visit.page.keyboard.press("End")  # 1
    panel.get_by_text("Uniform output.").wait_for()


def test_a_training_shows_its_progress_and_can_be_stopped(visit: Visit) -> None:
    panel = visit.tab("Train")
    panel.get_by_label("Gray textures").check()
    panel.get_by_role("button", name="Train").click()
    panel.get_by_text(re.compile(r"Training(, no step yet: .+|: [1-9])")).wait_for()
    panel.get_by_text(re.compile(r"Training: [1-9]\d* of 200 steps")).wait_for(timeout=3 * WAIT_MS)
    panel.locator(".plots svg").first.wait_for()
    panel.get_by_role("button", name="Stop").click()
    panel.get_by_text(re.compile(r"Stopped: \d+ of 200 steps")).wait_for()
    panel.get_by_text("trained here (1)").wait_for()
    sync.expect(visit.page.get_by_label("Model")).to_have_value("trained here (1)")


def test_from_a_folder_of_the_server_to_a_list_of_files(visit: Visit) -> None:
    panel = visit.tab("Images")
    panel.get_by_text("96 × 72, all").wait_for()
    panel.get_by_text("none of those looked at").wait_for()
    for chosen in ("more", "photos"):
        panel = visit.tab("Images")
        panel.get_by_label("Images", exact=True).click()
        visit.page.get_by_role("option", name=chosen, exact=True).click()
        train = visit.tab("Train")
        sync.expect(train.get_by_label(chosen, exact=True)).to_be_checked(timeout=WAIT_MS)
    train.get_by_label("A trial of 10 steps").check()
    train.get_by_role("button", name="Train").click()
    train.get_by_text(re.compile(r"Training: [1-9]\d* of 10 steps")).wait_for(timeout=3 * WAIT_MS)
    train.get_by_role("button", name="Stop").click()
    train.get_by_text(re.compile(r"(Stopped|Done): \d+ of 10 steps")).wait_for(timeout=3 * WAIT_MS)
    trained = train.get_by_text(re.compile(r"^runs/photos-\d+")).inner_text()
    sync.expect(visit.page.get_by_label("Model")).to_have_value(trained)
    sync.expect(visit.tab("Curves").get_by_label(trained)).to_be_checked(timeout=WAIT_MS)
    panel = visit.tab("Images")
    panel.get_by_role("button", name="Make a table with the model").click()
    panel.get_by_text("24 images are in the table").wait_for()
    panel = visit.tab("Map")
    files = panel.locator("textarea")
    for _ in range(5):  # a drag while the picture is being replaced is lost, as for a user
        edges = panel.get_by_alt_text("map of the images").bounding_box()
        visit.page.mouse.move(edges["x"] + 2, edges["y"] + 2)
        visit.page.mouse.down()
        visit.page.mouse.move(edges["x"] + edges["width"] - 2, edges["y"] + edges["height"] - 2)
        visit.page.mouse.up()
        visit.page.wait_for_timeout(3000)
        if files.count():
            break
    sync.expect(files).to_have_value(re.compile(r"23\.png\s*$"), timeout=WAIT_MS)
    assert files.input_value().split() == [f"{number:02d}.png" for number in range(24)]


def test_chosen_images_get_labels_the_rest_is_predicted_and_copies_are_listed(visit: Visit, tmp_path: Path) -> None:
    panel = visit.tab("Label")
    panel.get_by_role("button", name="Choose images").click()
    panel.get_by_text("Image 1 of 24").wait_for()
    panel.get_by_label("Label of the image").fill("disc")
    visit.page.keyboard.press("Enter")
    panel.get_by_text("Image 2 of 24").wait_for()
    panel.get_by_label("disc", exact=True).click()  # saves, and the choice is cleared for the next image
    panel.get_by_text("Image 3 of 24").wait_for()
    with visit.page.expect_download() as download:
        panel.get_by_role("button", name="Download the labels").click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,class" and [line.partition(",")[2] for line in lines[1:]] == ["disc", "disc"]
    labeled = {line.partition(",")[0] for line in lines[1:]}
    other = next(name for name in ("00.png", "01.png", "02.png") if name not in labeled)
    (tmp_path / "labels.csv").write_text(f"path,class\n{other},ring\n", encoding="utf-8")
    put(panel, tmp_path / "labels.csv")
    panel.get_by_text("3 labeled: disc 2, ring 1").wait_for()
    panel.get_by_role("button", name="Predict the rest").click()
    panel.get_by_text("3 labels are too few to measure it").wait_for()
    with visit.page.expect_download() as download:
        panel.get_by_role("button", name="Download the predictions").click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) == 25 and lines[0] == "path,class,probability,labeled"
    assert sum(line.endswith((",disc", ",ring")) for line in lines) == 3
    panel.get_by_role("button", name="Choose images").click()
    panel.get_by_text("Image 1 of 21").wait_for()
    panel = visit.tab("Duplicates")
    panel.get_by_role("button", name="Find duplicates").click()
    panel.get_by_text("groups among 24 images").wait_for()


def test_outliers_are_shown_and_listed(visit: Visit) -> None:
    panel = visit.tab("Outliers")
    panel.get_by_role("button", name="Find outliers").click()
    panel.get_by_text("of 24 images are above the usual range").wait_for()
    panel.get_by_text("· lof").first.wait_for()
    with visit.page.expect_download() as download:
        panel.get_by_role("button", name="Download the list").click()
    names = download.value.path().read_text(encoding="utf-8").split()
    assert len(set(names)) == 20 and set(names) <= {f"{number:02d}.png" for number in range(24)}
    panel.get_by_text("· lof").first.click()  # and then it is looked at
    visit.page.get_by_role("tabpanel").filter(visible=True).get_by_text("dark to bright").wait_for()


def test_a_zip_bomb_is_not_trained_on(visit: Visit, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a.png", bytes(80 * 2**20))
    panel = visit.tab("Train")
    panel.get_by_label("My own images (.zip)").check()
    put(panel, tmp_path / "bomb.zip")
    panel.get_by_label("bomb.zip").wait_for()  # as a text the name stands there only while it is sent
    panel.get_by_role("button", name="Train").click()
    sentence(visit.page, "would unpack to 80 MB")


def test_users_see_nothing_of_each_other(browser: Any, address: str, photo: Path) -> None:
    one, other = Visit(browser, address), Visit(browser, address)
    put(one.tab("Look"), photo)
    one.page.get_by_text("dark to bright").wait_for()
    panel = other.tab("Look")
    panel.get_by_label("PCA").check()  # would draw the picture, were there one
    other.page.wait_for_timeout(1500)
    assert picture(panel, "Result").count() == 0
    one.close()
    other.close()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={place}/secret.txt",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../../../../../etc/passwd",
        "/gradio_api/file=%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/gradio_api/file={place}/runs/first/config.yaml",
        "/static/../../../../../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_file_is_handed_out(address: str, place: Path, path: str) -> None:
    status, body = get(address, path.format(place=place))
    assert status in (403, 404)
    assert b"root:" not in body and b"do not tell" not in body and b"batch" not in body


def test_events_take_no_paths_that_were_not_uploaded(address: str, place: Path) -> None:
    """A client that names a file of the server's as if it had uploaded it."""
    status, body = get(address, "/config")
    config = json.loads(body)
    assert status == 200
    events = [each["id"] for each in config["dependencies"] if ["input"] in [target[1:] for target in each["targets"]]]
    assert events
    picture = {"path": str(place / "photos/00.png"), "meta": {"_type": "gradio.FileData"}}
    sent = json.dumps({"data": [picture], "fn_index": events[0], "session_hash": "x"})
    status, body = get(address, "/gradio_api/run/predict", sent)
    assert status >= 400 and b"do not tell" not in body


def test_pages_under_other_names_do_not_reach_it(address: str) -> None:
    """A site whose name is made to point at this machine (DNS rebinding)."""
    assert get(address, "/", host="example.com")[0] == 400
    assert get(address, "/")[0] == 200


def get(address: str, path: str, body: str | None = None, host: str | None = None) -> tuple[int, bytes]:
    """Ask for exactly this path: nothing tidies its dots."""
    server = address.removeprefix("http://")
    headers = {"Host": host or server, "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(server, timeout=60)) as connection:
        connection.request("POST" if body else "GET", path, body, headers)
        with connection.getresponse() as answer:
            return answer.status, answer.read()
