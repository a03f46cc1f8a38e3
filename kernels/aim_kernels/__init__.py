"""The operators and modules of aim-fast: AIM's block for any model."""
