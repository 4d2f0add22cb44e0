"""Analysis of weight updates: norms, ranks, spectra, intruder dimensions."""
