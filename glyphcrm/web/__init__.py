"""A page on this machine that shows what the models do; the functions behind it need no browser."""
