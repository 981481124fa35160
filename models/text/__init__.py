"""Labels as text: encoders of sentences, sentences of labels, banks of targets, heads and losses on them."""
