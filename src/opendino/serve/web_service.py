"""The HTTP service: one image per request as its body, JSON back; bytes, pixels, time and number are limited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from torch import Tensor

from opendino.core.errors import BadImage, UserError
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.models.classifier import Classifier
from opendino.models.load import Model
from opendino.serve.request_batches import RequestBatches

BODY_SECONDS = 30.0
"""A body that takes longer to arrive is refused."""


@dataclass(frozen=True)
class Limits:
    """What one request and all together may take.

    Attributes:
        body_bytes: Largest body.
        pixels: Largest image, height times width by its header.
        waiting: Requests that are read or computed at a time; further ones are answered with 503.
        batch: Images in a forward pass.
        workers: Threads that decode.
    """

    body_bytes: int = 20 * 2**20
    pixels: int = 64_000_000
    waiting: int = 64
    batch: int = 32
    workers: int = 2


@dataclass(frozen=True)
class Health:
    """Answer of /health: the service is up, and with which model."""

    status: str
    model: str
    fingerprint: str
    embed_dim: int
    classes: list[str]
    table: str | None
    images: int


@dataclass(frozen=True)
class Embedding:
    """Answer of /embed: the feature of the image, not L2-normalized, and the fingerprint of the model."""

    vector: list[float]
    fingerprint: str


@dataclass(frozen=True)
class Neighbor:
    """An image of the table and its cosine similarity, -1 to 1."""

    path: str
    score: float


@dataclass(frozen=True)
class Neighbors:
    """Answer of /search: the most similar images first; exact is false where an index was used."""

    results: list[Neighbor]
    exact: bool


@dataclass(frozen=True)
class Prediction:
    """Answer of /predict: the most probable class, and the probability of each."""

    label: str
    probabilities: dict[str, float]


class Service:
    """A model with its table and classifier, and the requests that are under way.

    Args:
        name: The model as the user named it.
        model: The model, on its device.
        classifier: A classifier on its features, on the same device; None without.
        table: A table of its vectors; None without.
        limits: The limits.
    """

    def __init__(
        self, name: str, model: Model, classifier: Classifier | None, table: EmbeddingTable | None, limits: Limits
    ) -> None:
        self.name, self.model, self.classifier, self.table, self.limits = name, model, classifier, table, limits
        self._decoders = ThreadPoolExecutor(limits.workers, "decode")
        device = ThreadPoolExecutor(1, "network")  # one forward pass at a time
        self._embed = RequestBatches(lambda images: model.embed(images).float().cpu(), device, limits.batch)
        self._predict = RequestBatches(self._probabilities, device, limits.batch)
        self._under_way = 0

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Compute batches while the service is up."""
        tasks = [asyncio.create_task(each.run()) for each in (self._embed, self._predict)]
        yield
        for task in tasks:
            task.cancel()

    async def embedding(self, request: Request) -> Tensor:
        """The feature `[D]` of the image in a request."""
        async with self._image(request) as image:
            return await self._embed.row(image)

    async def probabilities(self, request: Request) -> Tensor:
        """The probability of each class, `[C]`, for the image in a request."""
        async with self._image(request) as image:
            return await self._predict.row(image)

    async def neighbors(self, request: Request, k: int) -> Neighbors:
        """The images of the table that are most similar to the one in a request."""
        assert self.table is not None
        async with self._image(request) as image:
            vector = await self._embed.row(image)
            search = partial(self.table.nearest, vector[None], k)
            found = await asyncio.get_running_loop().run_in_executor(self._decoders, search)
        pairs = zip(found.keys[0], found.scores[0], strict=True)
        return Neighbors([Neighbor(path, round(score, 6)) for path, score in pairs], found.exact)

    @contextlib.asynccontextmanager
    async def _image(self, request: Request) -> AsyncIterator[Tensor]:
        """The image of a request, prepared `[C H W]`; counts the request as under way until the block ends."""
        if self._under_way >= self.limits.waiting:
            raise HTTPException(503, f"{self._under_way} requests are under way", {"Retry-After": "1"})
        self._under_way += 1
        try:
            body = await _body(request, self.limits.body_bytes)
            yield await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepared, body)
        finally:
            self._under_way -= 1

    def _prepared(self, body: bytes) -> Tensor:
        return self.model.prepare(self.model.reading.decode(body, max_pixels=self.limits.pixels))

    def _probabilities(self, images: Tensor) -> Tensor:
        assert self.classifier is not None
        features = self.model.run(partial(self.classifier.tokens, self.model.backbone), images)
        return self.classifier(features).softmax(1).float().cpu()


async def _body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 400 without a body, 408 if it is slow, 413 if it is too large.
    """
    too_large = HTTPException(413, f"An image has at most {most:,} bytes here")
    if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > most:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The image did not arrive within {BODY_SECONDS:g} s") from None
    if not found:
        raise HTTPException(400, "There is no image: send the bytes of an image file as the body")
    return bytes(found)


class ProgramsOnly:
    """ASGI middleware that refuses requests of web pages: a page of another site could use the service otherwise.

    Browsers say the origin of each POST, programs do not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] == "http" and any(name in (b"origin", b"sec-fetch-site") for name, _ in scope["headers"]):
            await _error(403, "Requests of web pages are refused", "Send it from a program")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _error(status: int, message: str, hint: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "hint": hint}}, status, headers)


def build(service: Service) -> FastAPI:
    """The routes; their description is at /openapi.json."""
    app = FastAPI(
        title="opendino", docs_url=None, redoc_url=None, lifespan=service.lifespan,  # those pages load from elsewhere
        description="Features of images. The body of a POST is an image file.",
    )  # fmt: skip
    app.add_middleware(ProgramsOnly)
    image: dict[str, Any] = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    body: dict[str, Any] = {"openapi_extra": {"requestBody": image | {"required": True}}}
    fingerprint = service.model.fingerprint

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(BadImage)
    async def not_an_image(request: Request, error: BadImage) -> JSONResponse:
        return _error(422, f"The image cannot be used: {error}")

    @app.exception_handler(UserError)
    async def failed(request: Request, error: UserError) -> JSONResponse:
        return _error(422, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()))

    @app.get("/health")
    async def health() -> Health:
        table, classifier = service.table, service.classifier
        return Health(
            "ok", service.name, fingerprint, service.model.backbone.embed_dim,
            [*classifier.classes] if classifier else [], table.name if table else None, len(table) if table else 0,
        )  # fmt: skip

    @app.post("/embed", **body)
    async def embed(request: Request) -> Embedding:
        return Embedding((await service.embedding(request)).tolist(), fingerprint)

    @app.post("/search", **body)
    async def search(request: Request, k: Annotated[int, Query(ge=1, le=1000)] = 10) -> Neighbors:
        if service.table is None:
            raise HTTPException(404, "There is no table: start with opendino serve MODEL --table TABLE")
        return await service.neighbors(request, k)

    @app.post("/predict", **body)
    async def predict(request: Request) -> Prediction:
        if service.classifier is None:
            raise HTTPException(404, "The model has no classifier: opendino eval linear MODEL --train DIR --out FOLDER")
        values = (await service.probabilities(request)).tolist()
        named = dict(zip(service.classifier.classes, (round(value, 6) for value in values), strict=True))
        return Prediction(max(named, key=named.__getitem__), named)

    return app
