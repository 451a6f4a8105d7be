"""Two versions side by side: the facts that SQL counts, the statistics of them, and how they are shown."""
