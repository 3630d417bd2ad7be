"""One pass over one job: what is begun, stopped, ended and removed."""
