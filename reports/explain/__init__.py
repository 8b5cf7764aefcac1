"""``diagnose explain NAME``: what docs/measures.md says of a name, and the docstring where it is one of the API's."""
