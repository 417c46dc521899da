"""The web page: a file a tab, each a few lines around what the layers below already do."""
