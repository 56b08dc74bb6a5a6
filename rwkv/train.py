"""python -m rwkv.train [group=option ...] [key=value ...]: train an RWKV model, or go on with a run that was stopped."""

import sys

from rwkv.config import cli
from rwkv.errors import ConfigError


def main(argv: list[str]) -> int:
    """Compose the settings from argv, check them, train. Returns the exit code."""
    overrides, flags = cli.separate(argv)
    if "--help" in flags or "-h" in flags:
        print(cli.usage("train", __doc__.split(": ", 1)[1]))
        return 0
    if {"-m", "--multirun"} & set(flags):
        raise ConfigError("-m: sweeps are not built yet; run the settings one by one, each has a run folder of its own")
    if unknown := [f for f in flags if f.startswith("-") and f.split("=")[0] not in cli.HYDRA_FLAGS]:
        raise ConfigError(f"{unknown[0]}: unknown flag; settings are written key=value; see --help")
    if flags:
        return cli.show(overrides, flags)

    from rwkv.config.check import check
    from rwkv.config.compose import load

    cfg = load(overrides)
    check(cfg)
    from rwkv.training.loop import train

    return train(cfg, overrides)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
