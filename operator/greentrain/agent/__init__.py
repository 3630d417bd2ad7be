"""The agent: one process on each GPU node that counts every joule, also while everything else is away."""
