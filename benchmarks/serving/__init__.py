"""How `imagen serve` does under load and under attack, as in docs/serving.md."""
