"""Reading run directories: tables, live views and pictures."""
