"""Plots while training and testing; they need matplotlib."""
