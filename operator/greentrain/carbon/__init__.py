"""Energy × intensity over time → emissions: pure, in whole micrograms of CO2 equivalent and by exact fractions.

Nothing in here reads a clock or a file: a `Lookup` answers what a kilowatt-hour emitted at a moment, and where it has no
answer the energy is reported as energy without an intensity. Unknown is not zero.
"""
