"""What the operator and the agent show of themselves: metrics, health and log lines."""
