"""What the worlds of seeded lives have in common, as plain data: a story on a virtual clock, pods, and a node's agent."""
