"""One page about a run: what it scores, what it gets wrong, and how to make it again."""

from aim_fast.report.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
