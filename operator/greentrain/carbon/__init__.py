"""Energy × intensity over time → emissions: pure, in whole micrograms of CO2 equivalent and by exact fractions.

Nothing here reads a clock or a file. A `Lookup` answers what a kilowatt-hour emitted at a moment; where it has no answer, the
energy is reported as energy without an intensity. Unknown is not zero.
"""
