def campaign(*a): pass
