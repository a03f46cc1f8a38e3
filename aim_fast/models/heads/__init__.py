"""Heads: a trunk's features to logits. Each is one file, without torch, and one line here."""

from collections import ChainMap

from aim_fast.models.head import Head
from aim_fast.models.heads.actionclip import ActionTexts
from aim_fast.models.heads.attentive import Attentive
from aim_fast.models.heads.linear import Linear
from aim_fast.models.heads.text import Text
from aim_fast.models.heads.x_clip import VideoPrompts

HEADS: dict[str, type[Head]] = {head.name: head for head in (Linear, Text, Attentive)}
# Heads that belong to a method, under its name: the method has no other.
OF_METHODS: dict[str, type[Head]] = {head.name: head for head in (VideoPrompts, ActionTexts)}
ALL_HEADS: ChainMap[str, type[Head]] = ChainMap(OF_METHODS, HEADS)  # a view: what is added to either is in it
