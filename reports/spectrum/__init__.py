"""Reading Hessian spectra: sharp directions, flat ones, and the way down."""
