"""What is inside a transformer: hidden states, attention, the relations of its values."""
