"""Experiments: many short runs that answer one question, with a table, a figure and every run kept."""
