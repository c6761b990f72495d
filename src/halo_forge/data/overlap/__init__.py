"""What stands twice: copies within the data, and what a benchmark or the holdout will ask."""
