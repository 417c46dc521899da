"""Pictures for people: one kind a file, drawn without a screen."""
