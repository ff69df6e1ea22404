"""What commands print at their end: results, plans, lists of runs, recommendations; and the same as plain data."""
