"""``diagnose doctor``: what works on this machine, and what each thing is needed for."""
