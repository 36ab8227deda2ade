"""What is compared on a run that has been trained, cell by cell, into one table.

Modules: ``cells`` (what comparisons have in common), ``sampling_grid`` (of `jobs.sweep`: settings
of drawing), ``downstream_utility`` (of `jobs.utility`: rulers of few films) and its
``learning_curve``; ``ready`` (whether a run has what is compared).
"""
