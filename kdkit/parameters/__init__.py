"""Parameters: the fields of a class as options of a line, a form and a recipe."""
