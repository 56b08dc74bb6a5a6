"""Jobs of a Slurm cluster: one for each run of a sweep, as arrays, submitted through submitit.

A time limit or preemption is announced to every task by a signal; they save a checkpoint together and end with 128 + its number. The
batch script, which outlives them, then asks for the job to be queued again, once; there the run is taken up where it was. When a node
fails, Slurm itself queues the job again.
"""

import difflib
import shlex
import time
from itertools import groupby
from pathlib import Path

from rwkv.config.launch import Slurm
from rwkv.config.schema import TrainConfig
from rwkv.errors import ConfigError
from rwkv.sweep import job as task
from rwkv.sweep import queue
from rwkv.sweep.freeze import freeze
from rwkv.sweep.ledger import Job, Sweep
from rwkv.training.signals import SAVED

# after srun, unless the user has cancelled the job: it was told of its time limit (140) or is preempted; or a task was lost (75; 137 if srun has its code
# too; 143 if srun has told the others to end) and there is a checkpoint since the start, for what fails again before the next one is not tried for ever
REQUEUE = """
code=$?
again=
case $code in
    140) again=yes ;;
    75|137|143) again=$(cat "$RWKV_SAVED"; scontrol show job "$SLURM_JOB_ID" | grep -o "PreemptTime=[0-9]") ;;
esac
if [ -n "$again" ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
rm -f "$RWKV_SAVED"
exit $code
"""
ADDRESS = 'export MASTER_ADDR=$(scontrol show node "$(scontrol show hostnames | head -n 1)" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p")'


def check(settings: list[TrainConfig], options: Slurm) -> None:
    """Raises ConfigError for what Slurm would refuse, or what would never end."""
    queue.require()
    if any(cfg.strategy.devices == "auto" for cfg in settings):
        raise ConfigError("strategy.devices=auto: a job asks for its GPUs before it knows its node; set strategy.devices to the GPUs of a node")
    if 60 * options.minutes <= options.warning_seconds:
        raise ConfigError(
            f"hydra.launcher.minutes={options.minutes} is over before the warning {options.warning_seconds} s ahead of it; "
            "set more minutes, or hydra.launcher.warning_seconds to less"
        )
    known = queue.partitions()
    wrong = [name for name in (options.partition or "").split(",") if name and name not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"hydra.launcher.partition={options.partition}: this cluster has no such partition{hint}; it has {', '.join(known)}")


def submit(sweep: Sweep, jobs: list[Job], options: Slurm) -> list[str]:
    """Submit jobs, those that need the same as one array, and write their ids into the ledger. Returns the arrays' ids.

    Raises:
        ConfigError: Slurm refuses them; its own words, and the settings that they are about.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    code = freeze(sweep.path)
    ids = []
    for (nodes, devices, cpu), group in groupby(sorted(jobs, key=resources), key=resources):
        alike = list(group)
        executor = submitit.SlurmExecutor(folder=sweep.slurm)
        settings = parameters(options, sweep, code, nodes, devices, cpu)
        executor.update_parameters(**settings)
        try:
            submitted = executor.map_array(task.main, [job.overrides for job in alike])
        except (FailedJobError, FailedSubmissionError) as error:
            raise ConfigError(refusal(str(error), settings)) from error
        for job, given in zip(alike, submitted, strict=True):
            job.slurm, job.state, job.attempts, job.code = given.job_id, "pending", job.attempts + 1, None
            job.folder.pruned.unlink(missing_ok=True)
        sweep.save()
        ids.append(submitted[0].job_id.partition("_")[0])
    return ids


def resources(job: Job) -> tuple[int, int, bool]:
    return job.nodes, job.devices, job.cpu


def parameters(options: Slurm, sweep: Sweep, code: Path, nodes: int, devices: int, cpu: bool) -> dict:
    """What submitit makes a batch script of: one task a device."""
    gpus = options.gpus_per_node if options.gpus_per_node is not None else (0 if cpu else devices)
    ours = [
        "trap : USR2 TERM  # the tasks save; this script waits for them",
        f"export {SAVED}=$(mktemp)",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        ADDRESS if nodes > 1 else "export MASTER_ADDR=127.0.0.1",
    ]
    settings = {
        "job_name": f"rwkv-{sweep.path.name}",
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": options.minutes,
        "nodes": nodes,
        "ntasks_per_node": devices,
        "gpus_per_node": gpus or None,
        "cpus_per_task": options.cpus_per_task,
        "mem": f"{round(options.memory_gb * 1024)}M" if options.memory_gb else None,
        "exclusive": options.exclusive or None,
        "array_parallelism": options.at_once,
        "signal_delay_s": options.warning_seconds,
        "mail_user": options.mail_user,
        "mail_type": options.mail_type,
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1"],  # ranks wait for one that has died
        "additional_parameters": {"requeue": True, **(options.sbatch or {})},
        "setup": [*options.setup, *ours],
        "teardown": REQUEUE.format(restarts=options.restarts).strip().splitlines(),
    }
    return {key: value for key, value in settings.items() if value is not None}


def refusal(words: str, settings: dict) -> str:
    """Slurm's words, and what was asked for."""
    said = [line.partition("error: ")[2] or line for line in words.splitlines() if line.startswith("sbatch:")] or [words.strip().splitlines()[-1]]
    asked = {k: v for k, v in settings.items() if k in ("partition", "account", "qos", "constraint", "time", "nodes", "ntasks_per_node", "gpus_per_node",
                                                         "cpus_per_task", "mem", "exclusive")}  # fmt: skip
    hint = ""
    if "gres" in words.lower() or ("gpus_per_node" in asked and "node configuration" in words.lower()):
        hint = "\nare there GPUs? strategy.accelerator=cpu asks for none, hydra.launcher.gpus_per_node sets their number"
    return f"Slurm rejects the job: {'; '.join(said)}\nasked for: {', '.join(f'{k}={v}' for k, v in asked.items())} (hydra.launcher.*, strategy.*){hint}"


class SlurmBackend:
    """Trials one by one, or jobs that are in the queue already, as the cluster has room."""

    detaches = True  # jobs go on without this process

    def __init__(self, sweep: Sweep, options: Slurm):
        self.sweep, self.options, self.parallel = sweep, options, options.at_once
        self.asked, self.active = 0.0, 0

    def check(self, jobs: list[Job]) -> None:
        """Nothing: whether a job can ever start is for Slurm to say, and it does when the job is submitted."""

    def room(self, job: Job) -> bool:
        return self.active < self.parallel

    def start(self, job: Job) -> None:
        submit(self.sweep, [job], self.options)
        job.attempts -= 1  # the pool counts
        self.active += 1

    def poll(self, jobs: list[Job]) -> dict[int, int]:
        if time.monotonic() - self.asked < self.options.poll:
            return {}
        self.asked = time.monotonic()
        known, over = queue.states(), {}
        for job in jobs:
            state = known.get(job.slurm, ("UNKNOWN", ""))[0]
            if state in queue.WAITING + queue.RUNNING:
                job.state = "pending" if state in queue.WAITING else "running"
            else:
                over[job.number] = queue.CODES.get(state, 1)
        self.active = len(jobs) - len(over)
        return over

    def stop(self, job: Job) -> None:
        queue.cancel([job.slurm])

    def kill(self, job: Job) -> None: ...
