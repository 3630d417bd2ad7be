"""The command line: what users run on their own machine, without a cluster and without the operator's packages."""
