"""The engine on this machine's processes: it does what the core decides, and decides nothing."""
