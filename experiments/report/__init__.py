"""The comparison of finished runs: statistics, tables, plots, and a page to mail."""
