"""The address of an object store in a job file: checked by its form alone, with nobody asked."""

from urllib.parse import urlsplit

from distrain.errors import ConfigError

_WITH_BUCKET = ("s3", "gs", "gcs")

_RULE = (
    "give the address of a place that is there, such as s3://bucket/prefix, gs://bucket/prefix or "
    "file:///mnt/disk/prefix; for the run's own folder leave it out"
)


def check_store_address(name: str, address: str | None) -> None:
    """Refuses what can be no address, and one with a secret in it.

    Raises:
        ConfigError: `name` is the field's, for the message.
    """
    if address is None:
        return
    try:
        parts = urlsplit(address)
        has_secret = parts.password is not None
    except ValueError as error:
        raise ConfigError(f"{name} is {address!r} ({error}); {_RULE}") from error
    if has_secret:  # not repeated here: the message may be kept
        raise ConfigError(
            f"{name} is an address with a key in it, which would stand in job.toml for all to "
            "read: leave KEY:SECRET@ out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "fill ~/.aws/credentials"
        )
    if "://" not in address or not parts.scheme:
        raise ConfigError(f"{name} is {address!r}; {_RULE}")
    if parts.scheme in _WITH_BUCKET and not parts.netloc:
        raise ConfigError(f"{name} is {address!r}, which names no bucket; {_RULE}")
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise ConfigError(
            f"{name} is {address!r}; write the whole path of a folder of this machine after "
            "file://, as in file:///mnt/disk/prefix"
        )


def without_options(address: str) -> str:
    """The address without what stands behind its question mark."""
    return address.partition("?")[0].rstrip("/")
