"""The data tests' videos serve here too."""

from tests.data.conftest import _own_cache, broken, videos

__all__ = ["_own_cache", "broken", "videos"]
