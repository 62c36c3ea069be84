"""The decisions: a state machine without I/O, threads or clock. Events in, effects out."""
