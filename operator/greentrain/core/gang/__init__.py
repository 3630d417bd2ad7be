"""A gang of pods: how it is made, judged and restarted."""
