"""What a model costs: multiply-adds, parameters, bytes kept for backward."""
