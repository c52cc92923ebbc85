"""What can go wrong with data and storage, each with the exit code that tells it apart."""


class DataError(Exception):
    """The data is missing, damaged or not what was described (exit code 65)."""

    exit_code = 65


class StorageError(Exception):
    """A file or folder could not be written (exit code 74)."""

    exit_code = 74


class LostProcessError(Exception):
    """A process that did a part of the work has ended before its time (exit code 69)."""

    exit_code = 69
