"""What crosses the border between two processes. Pure: no socket and no clock."""
