"""The engine proves itself on the card it finds: each operator's candidates are checked, timed, and the fastest taken.

``calls``: what a step asks of the operators. ``operands``: tensors for such a call, and what is right. ``selection``:
the fastest candidate that is right. ``child``: that in a process of its own. ``record``: what was found, kept by card.
``tuning``: all of it together, entered where the operators look.
"""
