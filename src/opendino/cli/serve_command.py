"""Embed, search and predict over HTTP, for other programs: opendino serve MODEL [--table TABLE] [--port N]"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from opendino.cli import Outcome, flags
from opendino.core import distributed, log
from opendino.core.errors import UserError
from opendino.core.ranges import Batch, Checked, Count, Workers
from opendino.embeddings.embedding_table import EmbeddingTable, check_model
from opendino.embeddings.open_table import open_table
from opendino.models.classifier import FROZEN, Classifier, load_classifier
from opendino.models.load import CLASSIFIER, Model, load


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino serve`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or timm:NAME; a folder of `opendino eval linear --out` also predicts classes."""
    table: str | None = None
    """Table of `opendino embed` with this model, for /search."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than 127.0.0.1 lets other machines use the service without a password."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """Port to listen on; 0 for any free port."""
    batch: Batch = 32
    """Largest number of images in a forward pass: those of requests that wait at the same time."""
    workers: Workers = 2
    """Number of threads that decode images."""
    max_mb: Annotated[int, Meta(ge=1, le=1024)] = 20
    """Largest image file, in MiB; an image has at most 64 million pixels."""
    waiting: Count = 64
    """Number of requests at a time; further ones are answered with 503. Memory: as many image files."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""


def run(args: list[str]) -> Outcome:
    """Serve until Ctrl-C or SIGTERM; requests under way are answered first."""
    config = flags.parse(Config, args, "opendino serve", "Embed, search and predict over HTTP, for other programs.")
    try:
        import uvicorn

        from opendino.serve import web_service
    except ImportError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise UserError(f"The service needs {error.name}", 'pip install "opendino[serve]"') from None
    from opendino.engine.interrupt import Interrupt

    limits = web_service.Limits(
        body_bytes=config.max_mb * 2**20, waiting=config.waiting, batch=config.batch, workers=config.workers
    )
    service = web_service.Service(config.model, *_opened(config), limits)
    server = uvicorn.Server(
        uvicorn.Config(web_service.build(service), log_level="warning", access_log=False, server_header=False)
    )
    listening = _listen(config.host, config.port)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with listening, Interrupt(), contextlib.suppress(KeyboardInterrupt):
        log.say(f"opendino serves {config.model} at {address}, described at {address}/openapi.json   (Ctrl-C stops it)")
        server.run([listening])
    return Outcome("", {"address": address})


def _opened(config: Config) -> tuple[Model, Classifier | None, EmbeddingTable | None]:
    """The model on its device, its classifier and its table, as far as there are any.

    Raises:
        UserError: One of them cannot be opened, or the table holds vectors of another model.
    """
    device = distributed.device(config.device)
    folder = Path(config.model).expanduser()
    table = open_table(config.table) if config.table else None
    if (folder / CLASSIFIER).is_file():
        model, classifier = load_classifier(folder)
        classifier = classifier.to(device)
        tuned = load(folder)
        if tuned.fingerprint != model.fingerprint:  # fine-tuning was not shown to be better
            log.say(f"/embed and /predict use the frozen features, {folder}/{FROZEN}, as `opendino predict` does")
            if table and table.about["fingerprint"] == tuned.fingerprint:
                raise UserError(
                    f"{table.name} holds vectors of the fine-tuned network, and {config.model} serves the frozen one",
                    f"Embed the images with {folder}/{FROZEN} into another table, or serve without --table",
                )
    else:
        model, classifier = load(config.model, table.about["which"] if table else None), None
    if table:
        check_model(table, model, config.model)
    return model.to(device), classifier, table


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol by its number: asyncio sends small answers at once (TCP_NODELAY) only on such sockets.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()  # so that a program that reads the address can connect at once
    except OSError as error:
        found.close()
        raise UserError(f"Cannot listen on {host}:{port}: {error.strerror or error}", "Choose another --port") from None
    return found
