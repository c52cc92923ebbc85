"""What can go wrong with data and storage, each with the exit code that tells it apart."""


class DataError(Exception):
    """The data is missing, damaged or not what was described (exit code 65)."""

    exit_code = 65


class StorageError(Exception):
    """A file or folder could not be written (exit code 74)."""

    exit_code = 74
