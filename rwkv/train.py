"""python -m rwkv.train [group=option ...] [key=value ...]: train an RWKV model, or go on with a run that was stopped.

With -m settings may have several values, group=a,b key=range(1,4): every combination is trained, each as a run of its own.
With hydra/launcher=slurm jobs of a cluster do it; the command returns once they are submitted, with --wait when they have ended.
"""

import sys

from rwkv.config import cli
from rwkv.errors import ConfigError
from rwkv.training.signals import watching_parent


def main(argv: list[str]) -> int:
    """Compose the settings from argv, check them, train. Returns the exit code."""
    with watching_parent() as is_job:
        return _main(argv, is_job)


def _main(argv: list[str], is_job: bool) -> int:
    overrides, flags = cli.separate(argv)
    if "--help" in flags or "-h" in flags:
        print(cli.usage("train", __doc__.split(": ", 1)[1], "[-m] [--wait]"))
        return 0
    many, wait = bool({"-m", "--multirun"} & set(flags)), "--wait" in flags
    flags = [f for f in flags if f not in ("-m", "--multirun", "--wait")]
    if unknown := [f for f in flags if f.startswith("-") and f.split("=")[0] not in cli.HYDRA_FLAGS]:
        raise ConfigError(f"{unknown[0]}: unknown flag; settings are written key=value; see --help")
    if flags and not many:
        return cli.show(overrides, flags)

    from rwkv.sweep.expand import grid, request

    asked = request(overrides)
    if flags and asked.sweeper.kind == "optuna":
        from rwkv.sweep.search import describe

        print(describe(asked))
        return 0
    if flags:
        print("\n".join(f"{point.folder.path}   {point.label}" for point in grid(asked)))
        return 0
    if many or (asked.launcher.kind == "slurm" and not is_job):
        from rwkv.sweep.command import sweep

        return sweep(asked, many, wait)
    if wait:
        raise ConfigError("--wait follows jobs of a cluster: it goes with hydra/launcher=slurm")
    return run(overrides)


def run(overrides: list[str]) -> int:
    """Train one run, in this process. Returns the exit code."""
    from rwkv.config.check import check
    from rwkv.config.compose import load

    cfg = load(overrides)
    check(cfg)
    from rwkv.training.loop import train

    return train(cfg, overrides)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
