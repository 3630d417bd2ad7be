"""A gang of pods: how it is created, judged and restarted."""
