"""Checks, seeding, patching, compiling, files: helpers of every other room."""
