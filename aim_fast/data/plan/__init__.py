"""The plan: everything about a clip that is decided by numbers, before any file is opened.

In: a row's number of frames and size, and (seed, epoch, index, view). Out: frames, box and augmentation, and the order
in which clips are read.
"""
