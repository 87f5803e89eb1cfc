"""What an operator uses: tuning, comparison of precisions."""
