"""Copies of a data set that are read faster: transcoded, as tar shards, or as decoded frames.

In: an index. Out: files on disk that give the same clips with the same labels.
"""
