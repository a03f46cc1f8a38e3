"""Frozen features in place of videos.

In: an index and what a frozen model makes of each clip. Out: features on disk, and batches of them for training.
"""
