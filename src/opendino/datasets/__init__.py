"""Datasets that only evaluations read: masks, DAVIS, revisited Oxford and Paris, copies."""
