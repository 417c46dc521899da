"""The ground floor: types, contracts, errors, the clock and its schedules. Imports nothing of ours."""
