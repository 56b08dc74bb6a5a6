"""Jobs as processes of this machine: `python -m rwkv.train` each, with devices of their own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress

from rwkv.config.launch import Local
from rwkv.errors import ConfigError
from rwkv.sweep.ledger import Job, Sweep
from rwkv.training.signals import PARENT


class LocalBackend:
    """Each GPU is used by one job; jobs that compute on the CPU share its cores."""

    detaches = False

    def __init__(self, sweep: Sweep, options: Local, gpus: list[str] | None = None):
        """gpus: ids of the devices to use; None: those that PyTorch finds."""
        self.sweep = sweep
        self.gpus = visible_gpus() if gpus is None else gpus
        self.free = list(self.gpus)
        self.parallel = options.jobs or len(self.gpus) or 1
        self.processes: dict[int, subprocess.Popen] = {}
        self.held: dict[int, list[str]] = {}

    def need(self, job: Job) -> int:
        """GPUs of a job."""
        return 0 if job.cpu or not self.gpus else job.devices or len(self.gpus)

    def check(self, jobs: list[Job]) -> None:
        """Raises ConfigError for a job that would wait for ever."""
        for job in jobs:
            if self.need(job) > len(self.gpus):
                raise ConfigError(f"#{job.number} {job.label}: strategy.devices={job.devices}, and there are {len(self.gpus)} GPUs here")

    def room(self, job: Job) -> bool:
        return len(self.processes) < self.parallel and self.need(job) <= len(self.free)

    def start(self, job: Job) -> None:
        held = [self.free.pop(0) for _ in range(self.need(job))]
        command = [sys.executable, "-m", "rwkv.train", *job.overrides]
        with self.sweep.log(job).open("a") as log:
            log.write(f"\n$ {shlex.join(['python', *command[1:]])}   ({time.strftime('%F %T')})\n")
            log.flush()
            self.processes[job.number] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._env(held),
                start_new_session=True,  # Ctrl-C on the terminal is the parent's, which passes it on once
            )
        self.held[job.number] = held

    def _env(self, held: list[str]) -> dict[str, str]:
        env = {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        if held:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        elif self.parallel > 1 and not self.gpus:
            env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.parallel)))
        return env

    def poll(self, jobs: list[Job]) -> dict[int, int]:
        over = {n: p.poll() for n, p in self.processes.items() if p.poll() is not None}
        for number in over:
            del self.processes[number]
            self.free = sorted([*self.free, *self.held.pop(number)], key=self.gpus.index)
        return over

    def stop(self, job: Job) -> None:
        self._signal(job, signal.SIGINT)

    def kill(self, job: Job) -> None:
        self._signal(job, signal.SIGKILL)

    def _signal(self, job: Job, number: int) -> None:
        """To all ranks of a job."""
        if job.number in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(self.processes[job.number].pid, number)


def visible_gpus() -> list[str]:
    """Ids of the GPUs here, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [i.strip() for i in named.split(",")] if named else [str(i) for i in range(torch.cuda.device_count())]
    return ids[: torch.cuda.device_count()]
