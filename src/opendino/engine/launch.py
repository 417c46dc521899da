"""Several processes on one machine from one command: torch's elastic launcher, one clear answer, one way to stop.

A process that is lost (killed, out of memory) takes the others with it, and all are started again; what they do must
find its way back by itself (`Config.resume`). A process that can say what went wrong is believed, and nothing is
started again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from opendino.core import atomic_write, errors
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import MOST_PROCESSES, cores
from opendino.engine.interrupt import Interrupted

_RESTARTS = 3
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def number(devices: int | str, device: str) -> int:
    """How many processes to start here: 1 where torchrun or srun has started them already.

    Args:
        devices: That many, or "auto": every GPU.
        device: What to train on, as `core.dist.device` takes it.

    Raises:
        UsageError: There are not so many.
    """
    if "RANK" in os.environ:
        return 1
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    present = torch.cuda.device_count() if kind == "cuda" else 1
    if devices == "auto":
        return max(1, present)
    assert isinstance(devices, int)
    if present == 0:
        return 1  # which says that there is no such device
    if kind == "cpu" and devices > MOST_PROCESSES:
        raise UsageError(
            f"--devices is {devices:,}, and this machine has {cores()} cores", f"Use 1 to {MOST_PROCESSES}"
        )
    if devices > present and kind != "cpu":
        raise UsageError(f"--devices is {devices}, and there is {present} of {kind}", "Use --devices auto")
    return devices


def together(processes: int, work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Do the same work in several processes that know of each other; returns rank 0's answer.

    Ctrl-C and SIGTERM are passed on once, so that the processes can save and leave; a second Ctrl-C ends them.

    Args:
        processes: How many.
        work: A function that a fresh process can import; its answer is plain JSON values.
        *args: Its arguments; they are sent to each process.

    Raises:
        UserError: What the first process to fail said, or that processes were lost again and again.
        KeyboardInterrupt: Interrupted before there was anything to save.
        RuntimeError: A process failed by our own mistake; holds its traceback.
    """
    home = Path(tempfile.mkdtemp(prefix="opendino-"))
    asked, failed = home / "asked", []

    def pass_on(number: int, frame: FrameType | None) -> None:
        again = asked.exists()
        asked.touch()
        for child in multiprocessing.active_children():
            if again and number == signal.SIGINT:
                child.kill()
            elif child.pid:
                os.kill(child.pid, signal.SIGTERM)

    # Processes are forked from one that has imported what they need and has no threads: torch is imported once and not
    # by each, nor by each that is started again. It must outlive them where a scheduler sends SIGTERM to everything.
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", work.__module__, "torch.utils.tensorboard"])
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGTERM, handler)
    # The launcher would handle signals itself, each twice where a terminal sends them to all; on a thread it does not.
    thread = threading.Thread(target=_launch, args=(processes, home, failed, work, args), name="launcher")
    before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
        return _verdict(home, failed)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        shutil.rmtree(home, ignore_errors=True)


def command(*words: str) -> dict[str, Any]:
    """Run an `opendino` command in a process of its own; returns its JSON answer.

    For scripts and notebooks: they cannot be imported by the processes that `together` starts.

    Args:
        *words: The verb and what follows.

    Raises:
        UserError: What the command said, as where it had been run here.
        RuntimeError: It failed by our own mistake; its traceback is on stderr.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        # The terminal has sent Ctrl-C to the command as well: the first must not reach it twice, which would end it.
        process.send_signal(signal.SIGINT if asked and number == signal.SIGINT else signal.SIGTERM)
        asked.append(number)

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    terminal = sys.stderr.isatty()  # it draws a live line there; a notebook's stderr is no file at all
    with tempfile.TemporaryFile() as answer, contextlib.ExitStack() as closing:
        process = subprocess.Popen(
            [sys.executable, "-m", "opendino", *words, "--json"], env=environment, stdin=subprocess.DEVNULL,
            stdout=answer, stderr=None if terminal else subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT, signal.SIGTERM):
                closing.callback(signal.signal, each, signal.signal(each, pass_on))
        for line in process.stderr or ():
            sys.stderr.write(line)
        code = process.wait()
        answer.seek(0)
        text = answer.read().decode()
    if code and text:
        error = json.loads(text)["error"]
        raise (Interrupted if code == 130 else UserError)(error["message"], error["hint"], code)
    if code:
        raise RuntimeError(f"opendino {' '.join(words)} ended with exit code {code}")
    return json.loads(text)


def _launch(processes: int, home: Path, failed: list[Exception], work: Callable[..., Any], args: Any) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [each for each in logging.root.manager.loggerDict if each.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # we say ourselves what there is to say
    # Else processes that are started again read in the same store where the lost ones could be reached, and wait there.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=_RESTARTS, start_method=_METHOD,
        logs_specs=DefaultLogsSpecs(log_dir=str(home / "logs")),
    )  # fmt: skip
    try:
        elastic_launch(config, _process)(str(home), processes, work, args)
    except Exception as error:  # for the main thread to judge
        failed.append(error)


def _process(home: str, processes: int, work: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    """What each process does: the work, and a word on how it ended. The first word counts."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # before looking, lest the one word to stop is missed
    verdict, known = Path(home) / "verdict.json", None
    if verdict.exists() or (Path(home) / "asked").exists():
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    try:
        answer = {"answer": work(*args)}
        if os.environ["RANK"] != "0":
            return
    except KeyboardInterrupt:
        os._exit(1)
    except Exception as error:
        if errors.lost(error):
            os._exit(1)  # the launcher starts all of us again
        known = errors.to_user_error(error)
        answer = {"error": [known.message, known.hint, known.exit_code]} if known else {"bug": traceback.format_exc()}
    mine = verdict.with_name(f"verdict-{os.environ['RANK']}.json")
    atomic_write.write(mine, json.dumps(answer))
    with contextlib.suppress(FileExistsError):
        os.link(mine, verdict)  # complete at once, and never in place of an earlier one
    if "answer" not in answer and not (known and known.exit_code == 130):
        os._exit(1)  # the others may be waiting for this one; when asked to stop all stop of their own accord


def _verdict(home: Path, failed: list[Exception]) -> dict[str, Any]:
    path = home / "verdict.json"
    if not path.exists():
        if (home / "asked").exists():
            raise KeyboardInterrupt
        again = f"Processes of this run were lost {_RESTARTS + 1} times"
        hint = "See whether the machine ran out of memory (dmesg), then: opendino resume RUN"
        raise UserError(again, hint) from (failed[0] if failed else None)
    said = json.loads(path.read_text(encoding="utf-8"))
    if "bug" in said:
        raise RuntimeError(f"a process failed:\n{said['bug']}")
    if "error" in said:
        raise UserError(*said["error"])
    return said["answer"]
