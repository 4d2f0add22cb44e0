"""What an adapter did to the weights: norms, ranks, spectra, intruder dimensions."""
