"""Anyone's image files: where they lie, with which labels, and what is in them."""
