"""Where intensities come from, each behind the port of `grid.source`."""
