"""What a job has used and emitted, and how its budgets stand."""
