"""The data tests' videos serve here too."""

from tests.data.conftest import broken, own_cache, videos

__all__ = ["broken", "own_cache", "videos"]
