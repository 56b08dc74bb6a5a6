"""argparse for the commands that take a model instead of settings, with the errors of the rest."""

import argparse
from typing import NoReturn

from rwkv.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def number(low: float, high: float, kind: type = float):
    """A type for add_argument: a number in [low, high]."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: wanted {'a whole number' if kind is int else 'a number'} from {low} to {high}")
        return value

    return parse
