"""One function per figure of the applications. Reads results, never models."""
