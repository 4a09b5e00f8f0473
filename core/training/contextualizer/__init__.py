"""The network that guesses masked words: how it is pretrained, and what it is worth on captions it never saw."""
