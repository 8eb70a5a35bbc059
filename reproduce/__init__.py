"""Each table and figure of the paper as one command: ``python -m reproduce table5``.

From the repository only, like ``cli.py`` and ``datamodules``; the wheel does not hold it.
"""
