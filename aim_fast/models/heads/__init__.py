"""Heads: a trunk's features to logits. Each is one file, without torch, and one line here."""

from aim_fast.models.head import Head
from aim_fast.models.heads.attentive import Attentive
from aim_fast.models.heads.linear import Linear
from aim_fast.models.heads.text import Text

HEADS: dict[str, type[Head]] = {head.name: head for head in (Linear, Text, Attentive)}
