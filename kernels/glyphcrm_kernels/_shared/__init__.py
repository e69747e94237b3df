"""What the ops have in common: the choice of an implementation, checks, launches, the C library."""
