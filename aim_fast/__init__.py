"""aim-fast adapts frozen image Transformers to video."""
