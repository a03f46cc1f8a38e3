"""Studies: several models or runs beside each other, and what limits one on a machine.

In: recipes, runs, models of this project and of others. Out: tables, plots and sentences.
"""
