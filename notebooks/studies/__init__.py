"""What the notebooks use and nothing else does: a room or folder for each study."""
