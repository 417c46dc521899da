"""`opendino serve`: embed, search and predict over HTTP, for other programs."""
