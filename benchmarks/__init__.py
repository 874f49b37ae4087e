"""What a training step costs, against other optimizers and against what the machine could do.

Run from the checkout: ``python -m benchmarks.step_cost --help``.
"""
