"""The service: the same answers as the commands, batches of requests, and refusals that leave it as it was."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories import model_folder, noise_folder, noise_image, small_vit
from torch import Tensor

from opendino.cli import main
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.embeddings.open_table import open_table
from opendino.models import classifier as classifiers
from opendino.models.classifier import Classifier, load_classifier
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model, load
from opendino.serve import web_service
from opendino.serve.request_batches import RequestBatches
from opendino.serve.web_service import Limits, Service, build

testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Classifier, EmbeddingTable, Path]:
    """A model with a classifier, the table of a folder of images, and the folder."""
    home = tmp_path_factory.mktemp("served")
    model = load(model_folder(home / "model", small_vit()))
    linear = Classifier(torch.randn(3, 24), torch.zeros(3), ("ok", "scratch", "dent"), Tokens())
    classifiers.save(home / "probe", model, linear, {})
    noise_folder(home / "photos", 5)
    assert main(["embed", str(home / "probe"), str(home / "photos"), "--out", str(home / "photos.parquet")]) == 0
    return *load_classifier(home / "probe"), open_table(str(home / "photos.parquet")), home / "photos"


def client(parts: Any, bare: bool = False, **limits: Any) -> Any:
    model, classifier, table, _ = parts
    service = Service("probe", model, None if bare else classifier, None if bare else table, Limits(**limits))
    return testclient.TestClient(build(service))


def photo(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    noise_image(width, height, seed=3).save(buffer, "PNG")
    return buffer.getvalue()


def test_answers_are_those_of_the_commands(parts: Any) -> None:
    model, classifier, table, photos = parts
    wanted = model.embed(str(photos / "3.png"))
    with client(parts) as web:
        health = web.get("/health").json()
        assert health["status"] == "ok" and health["images"] == 5 and health["classes"] == ["ok", "scratch", "dent"]
        told = web.post("/embed", content=photo()).json()
        assert told["fingerprint"] == model.fingerprint == health["fingerprint"]
        torch.testing.assert_close(torch.tensor([told["vector"]]), wanted)
        found = web.post("/search?k=2", content=photo()).json()
        assert [hit["path"] for hit in found["results"]] == table.nearest(wanted, 2).keys[0] and found["exact"]
        assert found["results"][0] == {"path": "3.png", "score": pytest.approx(1, abs=1e-5)}
        predicted = web.post("/predict", content=photo()).json()
        probabilities = classifier(wanted).softmax(1)[0]
        assert predicted["label"] == classifier.classes[int(probabilities.argmax())]
        assert [*predicted["probabilities"].values()] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_the_description_names_routes_and_bodies(parts: Any) -> None:
    with client(parts) as web:
        described = web.get("/openapi.json").json()
        assert {"/health", "/embed", "/search", "/predict"} == described["paths"].keys()
        assert "image/*" in described["paths"]["/embed"]["post"]["requestBody"]["content"]
        assert web.get("/docs").status_code == 404  # it would load scripts from elsewhere


@pytest.mark.parametrize(
    ("path", "sent", "status", "said"),
    [
        ("/embed", b"", 400, "There is no image"),
        ("/embed", b"not an image", 422, "The image cannot be used"),
        ("/embed", photo()[:200], 422, "The image cannot be used"),
        ("/embed", bytes(3001), 413, "at most 3,000 bytes"),
        ("/embed", photo(60, 50)[:3000], 422, "pixels"),
        ("/search?k=0", photo(20, 20), 422, "k: Input should be greater"),
        ("/nothing", b"", 404, "Not Found"),
    ],
)
def test_bad_requests_are_refused_and_the_next_is_answered(
    parts: Any, path: str, sent: bytes, status: int, said: str
) -> None:
    with client(parts, body_bytes=3000, pixels=2500) as web:
        chunks = iter([sent[:1000], sent[1000:]])  # without a Content-Length
        for content in (sent, chunks):
            answer = web.post(path, content=content)
            assert answer.status_code == status
            assert said in answer.json()["error"]["message"]
        assert web.post("/embed", content=photo(20, 20)).status_code == 200


def test_what_was_not_given_is_named(parts: Any) -> None:
    with client(parts, bare=True) as web:
        for path, hint in (("/search", "--table TABLE"), ("/predict", "opendino eval linear")):
            answer = web.post(path, content=photo())
            assert answer.status_code == 404 and hint in answer.json()["error"]["message"]


@pytest.mark.parametrize("header", [{"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "same-origin"}])
def test_web_pages_are_refused(parts: Any, header: dict[str, str]) -> None:
    with client(parts) as web:
        assert web.post("/embed", content=photo(), headers=header).status_code == 403


def test_more_requests_than_allowed_are_told_to_come_again(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(parts, waiting=0) as web:
        answer = web.post("/embed", content=photo())
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"

    async def slow(body: Any) -> Any:
        await asyncio.sleep(5)
        yield b""

    monkeypatch.setattr(web_service, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(web_service.Request, "stream", slow)
    with client(parts, waiting=1) as web:
        for _ in range(2):  # the first one is over when the second comes
            assert web.post("/embed", content=photo()).status_code == 408


def test_requests_that_wait_together_are_one_batch_and_each_gets_its_row() -> None:
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if images.isnan().any():
            raise RuntimeError("broken")
        return images.flatten(1) * 2

    async def ask() -> list[Any]:
        batches = RequestBatches(network, ThreadPoolExecutor(1), batch=4)
        asks = [asyncio.ensure_future(batches.row(torch.full((1, 2, 2), float(number)))) for number in range(6)]
        gone = asyncio.ensure_future(batches.row(torch.zeros(1, 2, 2)))
        await asyncio.sleep(0)
        gone.cancel()
        running = asyncio.create_task(batches.run())
        rows = await asyncio.gather(*asks)
        with pytest.raises(RuntimeError, match="broken"):
            await batches.row(torch.full((1, 2, 2), torch.nan))
        rows.append(await batches.row(torch.ones(1, 2, 2)))
        running.cancel()
        return rows

    rows = asyncio.run(ask())
    assert sizes == [4, 3, 1, 1]
    assert [row.tolist() for row in rows] == [[2.0 * number] * 4 for number in (*range(6), 1)]
