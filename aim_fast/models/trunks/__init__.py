"""Trunks: image Transformers over the frames of clips, each with the names of its weights."""
