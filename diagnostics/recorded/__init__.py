"""One recorded forward and backward pass, and what it says of the gradients of single examples."""
