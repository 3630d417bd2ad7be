"""What a job has used and emitted, and the state of its budgets."""
