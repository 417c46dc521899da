"""Start several processes on one machine from one command, with torch's elastic launcher (as torchrun does).

If a process dies without an error (killed, out of memory), the launcher stops the others and restarts all of them; they
resume from the newest checkpoint (`Config.resume`). If a process raises an error, that error is reported and nothing is
restarted.
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
    """Number of processes to start on this machine: 1 if torchrun or srun has already started them.

    Args:
        devices: Number of devices, or "auto" for every GPU.
        device: Device to train on, as for `core.distributed.device`.

    Raises:
        UsageError: There are fewer devices.
    """
    if "RANK" in os.environ:
        return 1
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    present = torch.cuda.device_count() if kind == "cuda" else 1
    if devices == "auto":
        return max(1, present)
    assert isinstance(devices, int)
    if present == 0:
        return 1  # that process raises the error about the missing device
    if kind == "cpu" and devices > MOST_PROCESSES:
        raise UsageError(
            f"--devices is {devices:,}, and this machine has {cores()} cores", f"Use 1 to {MOST_PROCESSES}"
        )
    if devices > present and kind != "cpu":
        raise UsageError(
            f"--devices is {devices}, and this machine has {present} {kind} device{'s' * (present > 1)}",
            f"Use 1 to {present}, or --devices auto",
        )
    return devices


def together(processes: int, work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Run a function in several distributed processes and return the result of rank 0.

    Ctrl-C and SIGTERM are forwarded once, so that the processes can save and exit; a second Ctrl-C kills them.

    Args:
        processes: Number of processes (the world size).
        work: A function that a new process can import; it returns JSON values.
        *args: Arguments of `work`, pickled to each process.

    Raises:
        UserError: The first error of a process, or processes died more often than they are restarted.
        KeyboardInterrupt: Interrupted before there was anything to save.
        RuntimeError: A process failed with a bug; the message holds its traceback.
    """
    temp_dir = Path(tempfile.mkdtemp(prefix="opendino-"))
    # The processes report through files: "asked" exists once the run is to stop, "verdict.json" holds the result.
    stop_file, failures = temp_dir / "asked", []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        second_signal = stop_file.exists()
        stop_file.touch()
        for child in multiprocessing.active_children():
            if second_signal and number == signal.SIGINT:
                child.kill()
            elif child.pid:
                os.kill(child.pid, signal.SIGTERM)

    # Fork the processes from a server process that has imported torch and has no threads, so that the import is paid
    # once and not per process and restart. The server ignores SIGTERM, which schedulers send to all processes.
    if _METHOD == "forkserver":
        preload = ["__main__", work.__module__, "torch.utils.tensorboard"]
        multiprocessing.set_forkserver_preload(preload)
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGTERM, handler)
    # On the main thread the launcher would install its own signal handlers, and a Ctrl-C, which a terminal sends to
    # every process, would count twice. On another thread it does not.
    thread = threading.Thread(target=_run_launcher, args=(processes, temp_dir, failures, work, args), name="launcher")
    before = {signum: signal.signal(signum, forward_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
        return _read_result(temp_dir, failures)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        shutil.rmtree(temp_dir, ignore_errors=True)


def command(*words: str) -> dict[str, Any]:
    """Run an `opendino` command in a subprocess and return its JSON result.

    For scripts and notebooks, which the processes started by `together` cannot import.

    Args:
        *words: The command-line arguments, e.g. "train", "DATA".

    Raises:
        UserError: The error that the command reported.
        RuntimeError: The command failed with a bug; its traceback is on stderr.
    """
    received: list[int] = []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the subprocess too. Forward the first as SIGTERM: a second SIGINT would kill it.
        process.send_signal(signal.SIGINT if received and number == signal.SIGINT else signal.SIGTERM)
        received.append(number)

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    terminal = sys.stderr.isatty()  # then the command draws its progress bar itself; in a notebook stderr is not a file
    with tempfile.TemporaryFile() as answer, contextlib.ExitStack() as closing:
        process = subprocess.Popen(
            [sys.executable, "-m", "opendino", *words, "--json"], env=environment, stdin=subprocess.DEVNULL,
            stdout=answer, stderr=None if terminal else subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                closing.callback(signal.signal, signum, signal.signal(signum, forward_signal))
        if process.stderr:
            closing.enter_context(process.stderr)
            sys.stderr.writelines(process.stderr)
        code = process.wait()
        answer.seek(0)
        text = answer.read().decode()
    if code and text:
        error = json.loads(text)["error"]
        raise (Interrupted if code == 130 else UserError)(error["message"], error["hint"], code)
    if code:
        raise RuntimeError(f"opendino {' '.join(words)} failed with exit code {code}")
    return json.loads(text)


def _run_launcher(
    processes: int, temp_dir: Path, failures: list[Exception], work: Callable[..., Any], args: Any
) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [
        logger for logger in logging.root.manager.loggerDict if logger.startswith("torch.distributed.elastic")
    ]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # `_read_result` reports errors
    # Restarted processes must not share the store of the dead ones: they would read stale addresses and hang.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=_RESTARTS, start_method=_METHOD,
        logs_specs=DefaultLogsSpecs(log_dir=str(temp_dir / "logs")),
    )  # fmt: skip
    try:
        elastic_launch(config, _worker_main)(str(temp_dir), processes, work, args)
    except Exception as error:  # handled on the main thread, in _read_result
        failures.append(error)


def _worker_main(temp_dir: str, processes: int, work: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    """Entry point of each process: run the work and report its result. The first report wins."""
    # Before the check for "asked", so that a SIGTERM that arrives in between ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    verdict, user_error = Path(temp_dir) / "verdict.json", None
    if verdict.exists() or (Path(temp_dir) / "asked").exists():
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
            os._exit(1)  # another rank died: the launcher restarts all of them
        user_error = errors.to_user_error(error)
        answer = (
            {"error": [user_error.message, user_error.hint, user_error.exit_code]}
            if user_error
            else {"bug": traceback.format_exc()}
        )
    mine = verdict.with_name(f"verdict-{os.environ['RANK']}.json")
    atomic_write.write(mine, json.dumps(answer))
    with contextlib.suppress(FileExistsError):
        os.link(mine, verdict)  # atomic: the file is complete, and never replaces an earlier one
    if "answer" not in answer and not (user_error and user_error.exit_code == 130):
        os._exit(1)  # makes the launcher stop the others, which may wait for this one; after Ctrl-C all stop themselves


def _read_result(temp_dir: Path, failures: list[Exception]) -> dict[str, Any]:
    path = temp_dir / "verdict.json"
    if not path.exists():
        if (temp_dir / "asked").exists():
            raise KeyboardInterrupt
        message = f"Processes of this run were killed {_RESTARTS + 1} times"
        hint = "Check whether the machine ran out of memory (dmesg), then: opendino resume RUN"
        raise UserError(message, hint) from (failures[0] if failures else None)
    result = json.loads(path.read_text(encoding="utf-8"))
    if "bug" in result:
        raise RuntimeError(f"a process failed:\n{result['bug']}")
    if "error" in result:
        raise UserError(*result["error"])
    return result["answer"]
