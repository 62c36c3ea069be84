"""What users call. Thin: every face speaks to an engine through its protocol."""
