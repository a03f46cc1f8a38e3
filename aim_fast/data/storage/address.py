"""Addresses of object storage, s3://, gs://, http:// …: told from paths, joined, and without their secrets.

An address may carry a user's name and password before its host, and a signature in its query. They go to the storage
alone: what is printed, written into a run or raised is :func:`shown`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

__all__ = ["is_address", "joined", "shown", "without_secrets"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(place: object) -> bool:
    """Whether this names a place in storage and not a path."""
    return isinstance(place, str) and bool(_SCHEME.match(place))


def joined(address: str, name: str) -> str:
    """The address of what is called ``name`` below another, whose query it keeps."""
    parts = urlsplit(address)
    name = quote(name) if parts.scheme in ("http", "https") else name
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def shown(address: str) -> str:
    """The address without user, password, query and fragment."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(text: str) -> str:
    """A message of another library, in one line, without what addresses in it carry."""
    text = " ".join(text.split())
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"://[^\s/@]+@", "://", text))
