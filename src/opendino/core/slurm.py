"""Set torch.distributed's environment variables from Slurm's, so that `srun` works without torchrun."""

from __future__ import annotations

import re
from collections.abc import MutableMapping


def adopt_slurm_environment(environment: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from the variables of `srun`.

    Does nothing if torchrun has set them, in a job step of one process, and outside a job step: the body of an sbatch
    script runs as a single process, even if the job has several tasks.

    Args:
        environment: `os.environ`, changed in place. Existing values of MASTER_ADDR and MASTER_PORT are kept.
    """
    step = "SLURM_STEP_ID" in environment or "SLURM_STEP_NUM_TASKS" in environment
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    if "RANK" in environment or not step or "SLURM_PROCID" not in environment or int(tasks) == 1:
        return
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    here = int(environment.get("SLURM_NODEID", "0"))
    per_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE"))
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=tasks,
        LOCAL_RANK=environment.get("SLURM_LOCALID", "0"),
        LOCAL_WORLD_SIZE=str(per_node[here] if here < len(per_node) else 1),
    )
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    # Every rank derives the same port from the job id; two jobs on one machine get different ports.
    environment.setdefault("MASTER_PORT", str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000))


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: "gpu[007-009,12],login" → "gpu007"."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    assert found, f"no host in {nodes!r}"
    return "".join(part or "" for part in found.groups())


def tasks_per_node(counts: str | None) -> list[int]:
    """Expand Slurm's tasks-per-node format: "4(x2),3" → [4, 4, 3]; None gives an empty list."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts or "")
    return [int(number) for number, times in pairs for _ in range(int(times or 1))]
