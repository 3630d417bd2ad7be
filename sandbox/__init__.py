"""A one- or two-node Kubernetes on a bare Debian 12 machine, so that everything can be tried where no cluster is.

Standard library only: it runs on the system's python3 before any virtual environment exists. `python3 -m sandbox` lists
its commands; docs/start/sandbox.md says what it puts where.
"""
