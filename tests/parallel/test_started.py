"""Which processes were started, by the environments of those that start them."""

from __future__ import annotations

from molfun.parallel.started import NODES, Started

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}


def test_a_batch_script_is_one_process_and_a_step_several() -> None:
    assert Started.found(BATCH).size == 1
    step = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
    assert Started.found(step) == Started(2, 2, 1, "SLURM")
    # a step of one task in a job of two, and of two machines
    small = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"}
    assert Started.found({**step, **small}).size == 1
    assert Started.found({**step, **small, "SLURM_NNODES": "2"}).local == 0
    assert Started.found({**step, "SLURM_JOB_NAME": "interactive"}).size == 1


def test_processes_that_a_command_started_in_a_step_are_its_own() -> None:
    task = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    child = {**task, NODES: "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"}
    assert Started.found(child) == Started(2, 2, 1, "molfun")
