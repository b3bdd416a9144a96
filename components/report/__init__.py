"""Finished results into one page, one results.json and the tables of the terminal."""
