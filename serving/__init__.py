"""Everything with a port: the page with the training API, and inference."""
