"""What else works without retraining, behind one protocol."""
