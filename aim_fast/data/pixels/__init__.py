"""Pixels: from planned clips to tensors.

In: plans, with a path or with frames that are decoded already. Out: uint8 [B, T, S, S, 3], decoded, cropped, resized
and augmented by DALI or PyTorch, on the CPU or on a GPU, to the same values by every route.
"""
