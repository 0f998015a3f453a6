"""Packages that only some settings need."""

from collections.abc import Iterator
from contextlib import contextmanager

from pice.errors import ConfigError


@contextmanager
def cluster_packages() -> Iterator[None]:
    """For imports of what needs the clients of Kafka and Redis.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"a deployment needs the package {error.name}: pip install 'pice[cluster]'") from error
