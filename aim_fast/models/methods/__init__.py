"""Methods: what is put on a frozen trunk, and what of it trains. Each is one file and one line here."""

from aim_fast.models.method import Method
from aim_fast.models.methods.aim import AIM
from aim_fast.models.methods.frozen import Full, Probe
from aim_fast.models.methods.timesformer import TimeSformer

METHODS: dict[str, type[Method]] = {method.name: method for method in (AIM, Probe, Full, TimeSformer)}
