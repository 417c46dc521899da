"""Each extra of pyproject.toml alone in a bare environment beside the wheel, and one command that needs it.

Run: python benchmarks/extras.py HOME [--only core search ...] [--out FILE.json]. HOME is an empty folder for the
environments, one after the other; with uv's cache on the same disk their files are links. Needs uv, hatchling and the
network. A table of Markdown goes to stderr, the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

from record import keep, machine

ROOT = Path(__file__).resolve().parents[1]
TRIALS = {
    "core": ["opendino demo --steps 3 --out run"],
    "app": ["serve: 7871/ opendino app run photos --port 7871"],
    "explore": [
        "opendino embed run photos --out e.parquet",
        "opendino embed run photos --out e.lance",
        "serve: 7874/ opendino explore e.lance --port 7874",
        "serve: 7872/ opendino explore e.parquet --port 7872",
    ],
    "export": ["opendino export run --to onnx --out net.onnx", "opendino export vit --to huggingface --out net"],
    "finetune": [
        "python: open('labels.csv', 'w').write('path,class\\n' + ''.join(f'{i}.png,{i % 2}\\n' for i in range(24)))",
        "opendino finetune vit photos --labels labels.csv --method.lora-rank 8 --steps 2 --out tuned",
    ],
    "medical": [
        "python: import shutil, pydicom.data as d; shutil.copy(d.get_testdata_file('CT_small.dcm'), 'scans/a.dcm')",
        "python: import nibabel as n, numpy as np; n.save(n.Nifti1Image(np.eye(32), np.eye(4)), 'scans/b.nii.gz')",
        "opendino inspect scans",
    ],
    "remote": ["python: import adlfs, gcsfs, s3fs", "opendino inspect file://{home}/photos"],
    "science": [
        "python: import numpy as n, tifffile as t; t.imwrite('scans/c.tif', n.eye(64, dtype='u2'), compression='zstd')",
        "opendino inspect scans",
    ],
    "search": ["opendino embed run photos --out t.lance", "opendino search run t.lance photos/0.png -k 3"],
    "serve": ["serve: 7873/health opendino serve run --port 7873"],
    "sklearn": [
        "python: from opendino.sklearn import Embedder as E; print(E('run').fit_transform(['photos/0.png']).shape)"
    ],
    "streams": [
        "python: import datasets as d; p = ['photos/0.png', 'photos/1.png'] * 8; "
        "d.Dataset.from_dict({'image': p}).cast_column('image', d.Image()).to_parquet('rows.parquet')",
        "opendino inspect rows.parquet",
    ],
    "umap": ["opendino embed run photos --out u.parquet", "opendino map u.parquet --projection umap --out map.png"],
    "video": [
        "python: import av, numpy as np; f = av.open('film.mp4', 'w'); s = f.add_stream('mpeg4', 10); "
        "s.width = s.height = 64; "
        "[f.mux(s.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * i, 'u1')))) for i in range(20)]; "
        "f.mux(s.encode(None)); f.close()",
        "opendino inspect film.mp4 --every 1s",
    ],
}
"""Extra → lines to run; the table has the last. `serve: PORT/PATH COMMAND` is asked for a page and interrupted."""
SETUP = (
    "import numpy as np, opendino; from pathlib import Path; from PIL import Image; r = np.random.default_rng(0); "
    "[Path(n).mkdir() for n in ('photos', 'scans')]; "
    "[Image.fromarray(r.integers(0, 256, (64, 64, 3), 'u1')).save(f'photos/{i}.png') for i in range(24)]; "
    "from opendino.models import load, build; network = build.backbone('vit_tiny/16', image_px=32); "
    "load.save_backbone(Path('vit'), {'teacher': network}, preprocessing=load.preprocessing(32))"
)
TIMEOUT_S = 900


def main() -> None:
    """Build the wheel, install, try, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    home = args.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"].keys() - {"dev"}
    assert extras == TRIALS.keys() - {"core"}, f"without a trial: {extras ^ (TRIALS.keys() - {'core'})}"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = home.glob("*.whl")
    found = {}
    for extra in dict.fromkeys(["core", *args.only]):  # the others start from the environment and the run of the core
        install(extra, wheel, home)
        if extra == "core":
            subprocess.run([home / "core/bin/python", "-c", SETUP], cwd=home, check=True)
        packages, mb = contents(home / extra)
        before, core_mb = (set[str](), 0.0) if extra == "core" else contents(home / "core")
        reason = next((wrong for line in TRIALS[extra] if (wrong := trial(line, extra, home))), "")
        about = {"packages": sorted(packages - before), "mb": round(mb - core_mb), "tried": TRIALS[extra][-1]}
        found[extra] = about | {"wrong": reason}
        told = (
            f"| `{extra}` | {len(about['packages'])} | {about['mb']:,} MB | `{about['tried']}` | {reason or 'works'} |"
        )
        print(told, file=sys.stderr, flush=True)
        if extra != "core":
            shutil.rmtree(home / extra)
    document = {"what": "each extra alone", "machine": machine(), "date": time.strftime("%Y-%m-%d"), "extras": found}
    keep(document, args.out)


def install(extra: str, wheel: Path, home: Path) -> None:
    """Make an environment: that of the core is new, the others are copies of it, by links, with what an extra adds."""
    python, uv = home / extra / "bin/python", [sys.executable, "-m", "uv"]
    if extra == "core":
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, home / extra], check=True)
    else:
        shutil.copytree(home / "core", home / extra, symlinks=True, copy_function=os.link)
    wanted = f"opendino{'' if extra == 'core' else f'[{extra}]'} @ {wheel.as_uri()}"
    again = ["--reinstall-package", "opendino"]  # uv's cache may hold an older wheel of this version
    subprocess.run([*uv, "pip", "install", "--quiet", *again, "--python", python, wanted], check=True)


def contents(environment: Path) -> tuple[set[str], float]:
    """Names of the installed packages, and the megabytes of all files but those that Python compiles."""
    freeze = [sys.executable, "-m", "uv", "pip", "freeze", "--python", environment / "bin/python"]
    listed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.suffix != ".pyc")
    return {line.partition("==")[0].partition(" @")[0] for line in listed}, size / 1e6


def trial(line: str, extra: str, home: Path) -> str:
    """Run a line in an environment; the last line of its errors, or nothing."""
    python = str(home / extra / "bin/python")
    environment = os.environ | {"PATH": f"{home / extra / 'bin'}:{os.environ['PATH']}"}
    if line.startswith("python: "):
        words = [python, "-c", line.removeprefix("python: ")]
    else:
        words = [python, "-m", *line.format(home=home).split()]  # links to scripts would start the core's Python
    if line.startswith("serve: "):
        words[2:] = words[4:]
        return served(words, f"http://127.0.0.1:{line.split()[1]}", home, environment)
    try:
        ended = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT_S} s"
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no reason"])[-1]


def served(words: list[str], url: str, home: Path, environment: dict[str, str]) -> str:
    """Start a server, ask for one page, interrupt it; the last line that it wrote, or nothing."""
    with (home / "server.txt").open("w") as log:
        process = subprocess.Popen(words, cwd=home, env=environment, stdout=log, stderr=log)
    last, reason = time.monotonic() + TIMEOUT_S, "no answer"
    while reason and process.poll() is None and time.monotonic() < last:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                reason = "" if answer.status == 200 else f"status {answer.status}"
        except OSError:
            time.sleep(1)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        return reason or "does not end by Ctrl-C"
    return reason and (home / "server.txt").read_text().strip().splitlines()[-1]


if __name__ == "__main__":
    main()
