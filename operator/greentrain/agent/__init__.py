"""The agent: one process on each GPU node that counts every joule, whoever else is away."""
