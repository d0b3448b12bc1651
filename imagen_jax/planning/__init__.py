"""Plans of runs on TPUs that are not there: what fits, how fast it can be at best, and what holds it back."""
