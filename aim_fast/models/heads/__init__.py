"""Heads: a trunk's features to logits."""
