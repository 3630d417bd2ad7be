"""One pass over one job: what is started, stopped, ended and deleted."""
