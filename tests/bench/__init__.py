"""Side by side with what a good engineer would put together; see `scripts/bench --help`."""
