"""The commands behind the `restill` command line."""
