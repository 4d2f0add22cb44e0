"""What only a GPU can show, within the minutes for which one is lent: `scripts/gpu`."""
