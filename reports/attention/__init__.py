"""Reading attention: its logits, its heads, and the output softmax."""
