"""Counter readings to intervals to joules per pod: pure, in whole millijoules, so that nothing is lost to rounding."""
