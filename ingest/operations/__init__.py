"""What operators see and do: status, dead letters, checks. The command line parses, calls this, and prints."""
