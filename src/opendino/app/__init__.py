"""The web page: one file per tab, each a thin layer over the other packages."""
