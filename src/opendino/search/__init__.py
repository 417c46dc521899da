"""What a model sees, kept: vectors of images in files and tables, and what one finds among them."""
