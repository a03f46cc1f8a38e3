"""Video Transformers that are trained whole: each a model of its own, not a frozen trunk under a method and a head."""
