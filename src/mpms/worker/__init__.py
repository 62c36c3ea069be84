"""The child: a process with a main thread that controls and T threads that run tasks."""
