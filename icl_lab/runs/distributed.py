"""Several hosts as one machine, if the environment says so: every process gives the same command, and the first one writes.

Under SLURM that is `srun icl-lab run ...` with more than one task; anywhere else the variables JAX_COORDINATOR_ADDRESS
(host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Prompts are laid over the devices of all processes;
what uses no prompts is computed by each of them.
"""

from __future__ import annotations

import os

from icl_lab.core.errors import InvalidValueError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Connect to the other processes of the job, if there are any; to be called before the first computation.

    Raises:
      InvalidValueError: an address without the number of processes and this one's index among them.
    """
    # A job of one task sees its scheduler's variables too, and so does a batch script outside its `srun`, which has no step.
    scheduled = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if not scheduled and ADDRESS not in os.environ:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if scheduled:
        jax.distributed.initialize()
        return
    count, index = os.environ.get(COUNT, ""), os.environ.get(INDEX, "")
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise InvalidValueError(
            f"with {ADDRESS}, `{COUNT}` must be the number of processes and `{INDEX}` its place among them, from 0 on; "
            f"got {count!r} and {index!r}."
        )
    jax.distributed.initialize(os.environ[ADDRESS], int(count), int(index))


def is_alone() -> bool:
    """Whether there is no other process."""
    import jax

    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this process is the one that writes; true where there is no other."""
    import jax

    return jax.process_index() == 0


def as_first_says(answer: bool) -> bool:
    """The first process's answer, in all of them: a run that one of them skipped would leave the others waiting."""
    if is_alone():
        return answer
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(answer))
