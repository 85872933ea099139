"""Errors that are the user's to mend: each names the field, the value it has, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """A wrong input; the command prints it without a traceback and exits with 2 (usage, config) or 1 (data, storage).

    Args:
        field: what is wrong, in the user's words: a config key, a file with its HDU, an option.
        value: what was found there.
        mend: what to do about it.
    """

    exit_code = 1

    def __init__(self, field: str, value: object, mend: str) -> None:
        self.field, self.value, self.mend = field, value, mend
        super().__init__(f"{field}: {value}. {mend}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.mend)


class ConfigError(UserError, ValueError):
    """A wrong configuration or command line (a ValueError, too, so that pydantic's validators may raise it)."""

    exit_code = 2


class DataError(UserError):
    """Survey files, shards or a dataset that cannot be used as they are."""


class DamagedError(DataError):
    """A stored sample, index or shard that is not what its index or manifest says: to be put aside and counted."""


class StorageError(UserError):
    """Object storage that does not answer, refuses, or gives back something else than was asked for."""
