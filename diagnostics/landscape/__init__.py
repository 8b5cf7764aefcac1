"""The loss around the parameters: on lines and planes through them."""
