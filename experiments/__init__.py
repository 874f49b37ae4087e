"""What reproduces a table or a figure: each module has a command line, ``python -m experiments.NAME --help``."""
