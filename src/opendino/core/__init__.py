"""The lowest layer: types, contracts, errors, schedules, distributed helpers. Imports no other part of opendino."""
