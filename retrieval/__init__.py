"""Documents in, passages out: load, split, embed, search."""
