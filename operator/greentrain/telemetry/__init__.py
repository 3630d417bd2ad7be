"""What the operator and the agent report of themselves: metrics, health and log lines."""
