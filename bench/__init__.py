"""Measuring programs. ``python -m bench WHAT``; each measures against its own baselines in one run."""
