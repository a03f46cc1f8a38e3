"""The trained run of the command's tests."""

from tests.cli.conftest import trained, undisturbed  # noqa: F401
