"""Asking storage, again where a connection drops, stalls or ends too early, with longer pauses from try to try.

After the last try one line says which address it was and what happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aim_fast.data.storage.address import shown, without_secrets
from aim_fast.errors import DataError, UsageError

__all__ = ["fetch", "file_system", "retried"]

TRIES = 5
STALLED = 30.0  # seconds without a byte
PAUSE = 0.5  # seconds before the second try, twice as long before each further one

Result = TypeVar("Result")


class _CutOff(Exception):
    """A transfer that ended before its last byte."""


def file_system(address: str) -> Any:
    """fsspec's, for an address. Raises UsageError where it or the storage's own package is missing."""
    scheme = urlsplit(address).scheme.lower()
    try:
        import fsspec

        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            wait = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
            options = {"client_kwargs": {"timeout": wait}}
        elif scheme in ("s3", "s3a"):
            options = {"config_kwargs": {"read_timeout": STALLED, "connect_timeout": STALLED}}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UsageError(
            f'{scheme}:// needs packages that are not here ({error}): pip install "aim-fast[storage]"'
        ) from None
    except ValueError:
        raise UsageError(f"{shown(address)}: fsspec knows no {scheme}://; take s3, gs, http or https") from None


def retried(address: str, what: str, ask: Callable[[], Result]) -> Result:
    """What ``ask`` gives, asked up to ``TRIES`` times. Raises DataError: "ADDRESS: WHAT cannot be had: …"."""
    reason = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        try:
            return ask()
        except Exception as error:  # each storage has its own
            reason, for_good = _reason(error)
            if for_good:
                raise DataError(f"{shown(address)}: {what} cannot be had: {reason}") from None
    raise DataError(f"{shown(address)}: {what} cannot be had, tried {TRIES} times: {reason}")


def fetch(address: str, size: int, to: Path) -> None:
    """Writes what is at an address into a file, all ``size`` bytes of it. Raises DataError as :func:`retried`."""
    system = file_system(address)

    def ask() -> None:
        system.get_file(address, str(to))
        if (got := os.path.getsize(to)) != size:
            raise _CutOff(f"it ended after {got} of {size} bytes")

    retried(address, "the shard", ask)


def _reason(error: Exception) -> tuple[str, bool]:
    """What happened, and whether it will be so the next time too."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "it is not there", True
    if isinstance(error, PermissionError) or status in (401, 403):
        return "it is not allowed: check the credentials", True
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no byte came for {STALLED:g} s", False
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be written ({error.strerror})", True
    if status:
        return f"the server answers {status}", False
    said = without_secrets(str(error))
    return said if isinstance(error, _CutOff) else f"{said} ({type(error).__name__})", False
