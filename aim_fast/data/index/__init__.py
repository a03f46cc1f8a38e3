"""The index: what is in a split, once and for all.

In: the listing of a format. Out: an :class:`~aim_fast.data.index.rows.Index`, one row a clip with its label and what a
full decode of its file found, kept on disk; and parts of it: some classes, some shots of each, a share of each.
"""
