"""Experiments: many short runs that answer one question, with a table and a figure; all runs are kept."""
