"""Files, text, seeds and hardware: helpers that know nothing of training."""
