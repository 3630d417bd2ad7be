"""How files and answers with intensities are written: each format a pure function from bytes to readings."""
