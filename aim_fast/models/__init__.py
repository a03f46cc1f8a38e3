"""Trunks, the adaptation put on them, heads, and weights in and out.

``registry`` makes models by name, ``weights`` loads image weights into them, ``flops`` counts what they cost.
"""
