"""Copies of a data set that are read faster: transcoded, as tar shards, or as decoded frames.

In: the indices of a data set. Out: files on disk that give the same clips with the same labels.
"""
