"""What circuits of different categories share, and what that goes with."""
