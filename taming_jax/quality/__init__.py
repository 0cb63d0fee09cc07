"""How good images are: networks that look at them, numbers that follow, evaluators of runs."""
