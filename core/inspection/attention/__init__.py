"""Where each word of a prompt looks: `recorder` sums what a probe is shown, `maps` makes one map a word of it."""
