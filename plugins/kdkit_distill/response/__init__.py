"""What the teacher answers: objectives over its logits."""
