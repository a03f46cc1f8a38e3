"""Training: from a recipe to a run's folder, and from a run to scores, predictions and single files."""
