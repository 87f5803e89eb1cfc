"""Targets of fuzzing, found by `harness.all_targets`."""
