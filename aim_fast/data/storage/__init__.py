"""Tar shards that lie in object storage or on a web server, by fsspec.

Read from here: ``address`` (what can be printed of one), ``mirror`` (a folder that stands for a remote one), ``cache``
(whole tars on this disk, within a bound).
"""
