"""Video models, each composed of a trunk, a method and a head, and their weights in and out.

``registry`` makes models by name, ``loading`` puts image weights into them, ``counting`` says what they cost.
"""
