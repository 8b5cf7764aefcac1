"""Products of curvature matrices with vectors: the routes, what is kept between products, and how they are checked."""
