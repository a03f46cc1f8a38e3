"""Methods: what is put on a frozen trunk, and what of it trains. Each is one file, without torch, and one line here."""

from aim_fast.models.method import Method
from aim_fast.models.methods.actionclip import ActionCLIP
from aim_fast.models.methods.aim import AIM
from aim_fast.models.methods.bitfit import BitFit
from aim_fast.models.methods.dist import DiST
from aim_fast.models.methods.evl import EVL
from aim_fast.models.methods.frozen import Full, Probe
from aim_fast.models.methods.lora import LoRA
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.methods.side4video import Side4Video
from aim_fast.models.methods.st_adapter import STAdapter
from aim_fast.models.methods.timesformer import TimeSformer
from aim_fast.models.methods.x_clip import XCLIP
from aim_fast.models.methods.zeroi2v import ZeroI2V

SHIPPED = (AIM, Probe, Full, TimeSformer, STAdapter, ZeroI2V, BitFit, LoRA, XCLIP, ActionCLIP, EVL, Side4Video, DiST)
METHODS: dict[str, type[Method]] = {method.name: method for method in SHIPPED}


def method_lines() -> dict[str, str]:
    """Of every method, and of the one that is a model of its own, what it is."""
    return {name: method.line for name, method in METHODS.items()} | {Prompting.name: Prompting.line}
