"""Pages that show results: the kit that builds them, and the dashboard."""
