"""Dropout, residual, gathered skip rows and layer normalisation in one pass."""
