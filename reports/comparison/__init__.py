"""Several runs side by side: what differs in their settings, in what they measured, and at the same loss."""
