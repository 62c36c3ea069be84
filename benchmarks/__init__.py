"""The benchmarks of mpms: see README.md beside this file. No part of the package that is installed."""
