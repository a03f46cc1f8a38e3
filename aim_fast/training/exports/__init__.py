"""Exported files of a trained model: what one says of itself, how each format is written, and one opened as a model.

    graph         a model                  -> clips in, logits out, as torch.export has it
    folding       a graph                  -> the same with all that follows from weights alone computed
    description   a run                    -> classes, sampling and pixels, in the file's metadata
    pt2_file, onnx_file, aoti_file            a graph and a description -> a file, and a file -> what runs clips
    opening       a file                   -> a model that ``eval``, ``predict`` and ``compare`` take

Who exports is :mod:`aim_fast.training.export`.
"""
