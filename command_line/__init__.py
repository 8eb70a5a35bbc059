"""What ``cli.py`` is made of besides Lightning's command line; the wheel does not hold it."""
