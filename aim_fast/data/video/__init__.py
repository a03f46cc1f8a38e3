"""Video files: opening, probing, decoding and encoding one at a time.

In: a path, of a file, a folder of pictures or a member of a tar. Out: its frames as uint8 arrays, or what is wrong.
"""
