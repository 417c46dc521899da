"""Load on `opendino serve` over the loopback: requests/s, latency, memory, and bad requests in between.

Run: python benchmarks/serve.py [--requests 1000] [--clients 1 8 32] [--network conv4] [--out FILE.json], or --help
A model with random weights embeds one photograph (JPEG, 640 × 480) again and again. Each client is a thread with its
own connection that sends the next request when it has the answer to the last. About a minute; the last line of stdout
is one JSON document. Traffic goes to this machine only.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import keep, machine

from opendino.models.build import backbone
from opendino.models.load import preprocessing, save_backbone

BAD = {b"": 400, b"no image": 422, bytes(21 * 2**20): 413}
"""Body → status."""


def photograph() -> bytes:
    """A smooth JPEG of 640 × 480."""
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def post(connection: http.client.HTTPConnection, body: bytes) -> int:
    """Status of /embed for a body."""
    connection.request("POST", "/embed", body)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def resident_mb(process: int) -> float:
    """Memory of a process, in MB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


def load(port: int, clients: int, requests: int, body: bytes) -> dict[str, Any]:
    """Send requests from several clients at a time."""
    seconds: list[float] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(number):
            began = time.perf_counter()
            assert post(connection, body) == 200
            seconds.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client, args=(requests // clients,)) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - began
    assert len(seconds) == requests // clients * clients, "a client failed"
    centiles = statistics.quantiles(seconds, n=100)
    return {
        "clients": clients, "requests": len(seconds), "per_second": round(len(seconds) / whole, 1),
        "p50_ms": round(centiles[49] * 1e3, 1), "p99_ms": round(centiles[98] * 1e3, 1),
    }  # fmt: skip


def measure(port: int, process: int, options: argparse.Namespace) -> dict[str, Any]:
    """Loads one after the other, with bad requests after each."""
    body, rows = photograph(), []
    load(port, 1, 20, body)
    first = resident_mb(process)
    for clients in options.clients:
        rows.append(load(port, clients, options.requests, body))
        for bad, status in BAD.items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                assert post(connection, bad) == status
            except (BrokenPipeError, ConnectionResetError):  # the answer came before the body was sent
                assert status == 413
            connection.close()
        rows[-1]["resident_mb"] = round(resident_mb(process))
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {"loads": rows, "resident_mb_at_first": round(first), "resident_mb_at_last": rows[-1]["resident_mb"]}


def main() -> None:
    """Start the service, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="requests of each load (default 1000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="clients at a time")
    parser.add_argument("--network", default="conv4", help="backbone, with random weights (default conv4)")
    parser.add_argument("--image-px", type=int, default=64, help="image size of the network (default 64)")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        network = backbone(options.network, image_px=options.image_px)
        save_backbone(Path(home) / "model", {"teacher": network}, preprocessing=preprocessing(options.image_px))
        said = Path(home) / "said.txt"
        with said.open("w", encoding="utf-8") as stderr:
            command = [sys.executable, "-m", "opendino", "serve", f"{home}/model", "--port", "0"]
            server = subprocess.Popen(command, stderr=stderr)
        try:
            while not (port := re.search(r"at http://127\.0\.0\.1:(\d+),", said.read_text(encoding="utf-8"))):
                assert server.poll() is None, said.read_text(encoding="utf-8")
                time.sleep(0.1)
            document = measure(int(port[1]), server.pid, options)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    about = {"benchmark": "serve", "network": options.network, "image_px": options.image_px, "machine": machine()}
    keep(about | {"load_average": os.getloadavg()[0]} | document, options.out)


if __name__ == "__main__":
    main()
