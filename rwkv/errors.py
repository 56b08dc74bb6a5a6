"""Errors that a user can mend. Each message says what, where, which value, and what to do; commands print it and exit 2."""

LOST = 75  # exit code, sysexits' EX_TEMPFAIL: the same command may well succeed


class UserError(ValueError):
    """Base of all errors that are the input's, not the program's."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range, contradicts another, or asks for what is not there.

    short: the same in a few words, without setting and remedy, where there is little room.
    """

    def __init__(self, message: str, short: str = ""):
        super().__init__(message)
        self.short = short or message


class DataError(UserError):
    """Data is missing, empty, unreadable or does not fit the settings."""


class CheckpointError(UserError):
    """A checkpoint or model file is missing, damaged, or of another model."""


class KernelError(UserError):
    """A kernel backend was asked for that cannot run here."""


class TrainingError(UserError):
    """Training cannot go on: the loss or a gradient is not finite."""


class RankLostError(UserError):
    """Processes of the run have not come."""

    exit_code = LOST
