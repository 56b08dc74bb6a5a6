"""python -m rwkv.plan [group=option ...] [key=value ...] [plan.gpu=NAME ...] [--json]: what a run takes, and whether it fits."""

import json
import sys
from dataclasses import replace

from rwkv.config import cli
from rwkv.errors import ConfigError

MACHINES = """the machine is this one, or one described:
  plan.gpu=NAME         %s; none for CPUs
  plan.gpus=N           of a node; plan.nodes=N
  plan.memory=80GB      of a GPU; plan.host_memory=2TB of a node
  plan.rate=N           tokens a second in all, or plan.mfu=0.4; else as an earlier run here, or as such a device has done
  plan.document=64k     layout=document: tokens of the longest document
  --json                everything, in bytes, seconds, FLOPs"""


def main(argv: list[str]) -> int:
    """Print the plan of a run; 0 if it fits, else 1."""
    overrides, flags = cli.separate(argv)
    if "--help" in flags or "-h" in flags:
        from rwkv.training.planning.machine import GPUS

        print(cli.usage("plan", __doc__.split(": ", 1)[1] + "\n\n" + MACHINES % ", ".join(GPUS), "[--json]"))
        return 0
    if unknown := [f for f in flags if f != "--json"]:
        raise ConfigError(f"{unknown[0]}: unknown flag; see --help")

    from rwkv.config.check import check
    from rwkv.config.compose import load
    from rwkv.training.planning import machine, plan, show
    from rwkv.training.planning.work import model_size

    asked, overrides = machine.split(overrides)
    cfg = load(overrides)
    alone = replace(cfg.strategy, kind="auto", devices=1, nodes=1, deepspeed={}, swap=None)
    check(replace(cfg, strategy=alone), reads_data=False)  # what a strategy cannot do is part of the plan
    if asked.document and cfg.layout.kind != "document":
        raise ConfigError(f"plan.document={asked.document} is for layout=document, and layout is {cfg.layout.kind}: set layout=document, or leave it out")
    if cfg.threads:
        import torch

        torch.set_num_threads(cfg.threads)
    made = plan.make(cfg, model_size(cfg), asked, machine.machine(asked, cfg.strategy))
    if "--json" in flags:
        print(json.dumps(made.as_dict(), indent=1))
    else:
        show.show(made)
    return 0 if made.chosen.fits else 1


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
