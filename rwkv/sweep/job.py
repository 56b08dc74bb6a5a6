"""What a task of the cluster runs. submitit keeps a reference to it by name; nothing else of this process goes with it."""

import signal
import sys

from rwkv import train
from rwkv.config import cli


def main(overrides: list[str]) -> None:
    """Train one run and end with its exit code; the batch script, which sees it, asks for another turn if there is to be one.

    submitit's handlers are taken off: before training begins nothing is lost when a signal ends the process, then
    `rwkv.training.signals.Stop` has them.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = ["rwkv.train", *overrides]
    sys.exit(cli.guarded(train.run, overrides))
