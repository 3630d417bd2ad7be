"""Power caps of a job: what is measured under them, which one is chosen, and whether it is in force."""
