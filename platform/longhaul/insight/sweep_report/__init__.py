"""The report of a sweep: one page, its pictures, a table, and a folder of its own for each cell."""
