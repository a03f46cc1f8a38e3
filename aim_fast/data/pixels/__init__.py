"""Pixels: from planned clips to tensors.

In: planned clips, each with the path of its video or with frames that are decoded already. Out: uint8 [B, T, S, S, 3],
decoded by DALI or PyAV, cropped, resized and augmented; on the CPU to the same bits by every route, on a GPU within a
few levels of them.
"""
