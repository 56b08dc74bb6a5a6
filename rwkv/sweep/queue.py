"""What Slurm says about jobs, and what it is told: squeue, sinfo, scancel."""

import shutil
import subprocess

from rwkv.errors import ConfigError

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING")
CODES = {"COMPLETED": 0, "CANCELLED": 143, "TIMEOUT": 140, "PREEMPTED": 140, "NODE_FAIL": 140}  # exit codes that say the same; others fail: 1


def require() -> None:
    """Raises ConfigError where there is no Slurm."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise ConfigError(
            "hydra/launcher=slurm: there is no Slurm on this machine (no sbatch among its programs): type it on a login node of the cluster, "
            "or leave hydra/launcher out to train here"
        )


def ask(*command: str) -> str:
    """The answer of one of Slurm's programs. Raises ConfigError if it cannot be had."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]}: there is no Slurm on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{command[0]}: Slurm does not answer") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"{command[0]}: Slurm is installed here, and does not answer: {said[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout


def states() -> dict[str, tuple[str, str]]:
    """Job id, as 12 or 12_3 -> (state, reason), of all of this user's jobs that Slurm still knows."""
    lines = ask("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r").splitlines()
    return {name: (state, reason) for name, state, reason in (line.split("|", 2) for line in lines)}


def active(known: dict[str, tuple[str, str]], name: str | None) -> bool:
    """Whether a job is in the queue, or runs."""
    return known.get(name, ("", ""))[0] in WAITING + RUNNING


def partitions() -> list[str]:
    return sorted(set(ask("sinfo", "-h", "-o", "%R").split()))


def cancel(ids: list[str]) -> None:
    ask("scancel", *ids)
