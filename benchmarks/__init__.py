"""What things cost: each module prints one table."""
