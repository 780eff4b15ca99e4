"""How the teacher relates items to one another: objectives over a batch, or over two layers."""
