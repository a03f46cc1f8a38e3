"""Weights in and out: files, folders and their entries, names brought to a trunk's, and what a file gives a model.

``aim_fast.models.loading`` puts them into a model; nothing here knows a model's class.
"""
