"""Pages and figures: the report on many runs, and the page on one probe."""
