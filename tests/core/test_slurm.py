"""Slurm's variables are converted to torch's if srun started several processes without torchrun."""

from __future__ import annotations

import pytest

from opendino.core import slurm

SRUN = {
    "SLURM_JOB_ID": "4200123", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "7", "SLURM_NTASKS": "7",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}  # fmt: skip


def test_all_variables_of_torch_are_set() -> None:
    environment = dict(SRUN)
    slurm.adopt_slurm_environment(environment)
    assert {key: environment[key] for key in environment if key not in SRUN} == {
        "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu007", "MASTER_PORT": "20123",
    }  # fmt: skip
    again = dict(environment)
    slurm.adopt_slurm_environment(again)
    assert again == environment


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SRUN | {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun under srun: its word counts
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # an sbatch script without srun
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_nothing_is_set_outside_of_a_step_with_several_tasks(environment: dict[str, str]) -> None:
    before = dict(environment)
    slurm.adopt_slurm_environment(environment)
    assert environment == before


def test_an_existing_master_address_is_kept() -> None:
    environment = SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    slurm.adopt_slurm_environment(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "1234")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("gpu[3,5-9]", "gpu3"), ("gpu[007-009,12],login", "gpu007"),
        ("r1n[01-02].cluster.org", "r1n01.cluster.org"), ("a-b[1-2]-x,c", "a-b1-x"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_tasks_of_each_node() -> None:
    assert slurm.tasks_per_node("4(x2),3") == [4, 4, 3]
    assert slurm.tasks_per_node("1") == [1]
    assert slurm.tasks_per_node(None) == []
