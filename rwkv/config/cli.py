"""The command line of the commands that take settings: `key=value` and Hydra's own flags.

A user's mistake ends with one message on stderr and exit code 2, never a traceback.
"""

import os
import sys
from collections.abc import Callable

from rwkv import disk
from rwkv.errors import UserError

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p", "--shell-completion", "-sc")
VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--shell-completion", "-sc")


def guarded(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run a command; a UserError becomes its message and exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return main(argv)
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in disk.FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}: make room, then the same command goes on from what is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def usage(command: str, purpose: str, flags: str = "") -> str:
    """The text of --help: the groups with their options, then how values are set."""
    from rwkv.config.compose import conf_dir, groups

    flags = f"{flags} " if flags else ""
    lines = [f"usage: python -m rwkv.{command} {flags}[group=option ...] [key=value ...] [--cfg job] [--help]", "", purpose, "", "groups (* is the default)"]
    for name, group in groups().items():
        options = ", ".join(o + "*" * (o == group.default) for o in group.options) or "-"
        lines.append(f"  {name:15} {options:70} {group.about}")
    lines += [
        "",
        "values: any key of those files, e.g. optim.lr=1e-3 trainer.tokens=2M ctx_len=1000 (a number k is 1024)",
        "  --cfg job   print the settings as composed, and stop",
        f"  files: {conf_dir()}",
    ]
    return "\n".join(lines)


def show(overrides: list[str], flags: list[str]) -> int:
    """Leave --cfg, --info and completion to Hydra, with the overrides checked first."""
    import hydra

    from rwkv.config.compose import PRIMARY, conf_dir, load, normalise

    load(overrides)
    sys.argv = [sys.argv[0], *normalise(overrides), *flags]
    hydra.main(config_path=str(conf_dir()), config_name=PRIMARY, version_base="1.3")(lambda _: None)()
    return 0


def separate(argv: list[str]) -> tuple[list[str], list[str]]:
    """(overrides, Hydra's flags with their values)."""
    overrides, flags, i = [], [], 0
    while i < len(argv):
        arg = argv[i]
        takes = arg.split("=")[0] in VALUED and "=" not in arg
        if arg.startswith("-"):
            flags += argv[i : i + 2] if takes else [arg]
            i += 2 if takes else 1
        else:
            overrides.append(arg)
            i += 1
    return overrides, flags
